"""Accuracy against the number of examples in the prompt, as a page and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from launch.views.page import BLUE, CHART_CONFIG, embed, escape, made_by, page
from launch.views.palette import paletted

if TYPE_CHECKING:
    from train.fewshot import Accuracy

_MEANING = (
    "Each point is the share of questions that the network answered right by its likeliest tokens. The prompt holds "
    "only the question, and before it so many solved ones; nothing is trained. Bars are exact binomial 95% intervals "
    "over all answers; pale points are single draws of examples and questions. The questions are the same along a "
    "curve, so its points differ by the examples alone."
)


def shots_page(found: Sequence[Accuracy], title: str, command: str) -> str:
    """A self-contained HTML page with the curves and their numbers."""
    rows = "".join(
        f"<tr><td>{escape(one.task)}</td><td>{one.shots}</td><td>{one.right}/{one.asked}</td>"
        f"<td>{one.accuracy:.1%}</td><td>{one.interval[0]:.1%} to {one.interval[1]:.1%}</td></tr>"
        for one in found
    )
    body = f"""<h1>{escape(title)}</h1>
{embed("shots", _chart(found))}
<p>{escape(_MEANING)}</p>
<table><tr><th>task</th><th>examples</th><th>right</th><th>accuracy</th><th>95% interval</th></tr>{rows}</table>
{made_by(command)}"""
    return page(title, body, "td, th { text-align: left; padding: 2px 18px 2px 0; }")


def shots_png(found: Sequence[Accuracy], title: str, scale: float = 2) -> bytes:
    """The curves as a PNG, `scale` pixels to the point."""
    import vl_convert

    return paletted(vl_convert.vegalite_to_png(_titled(found, title), scale=scale))


def shots_svg(found: Sequence[Accuracy], title: str) -> str:
    """The curves as an SVG."""
    import vl_convert

    return vl_convert.vegalite_to_svg(_titled(found, title))


def _titled(found: Sequence[Accuracy], title: str) -> dict[str, Any]:
    return _chart(found) | {"title": title, "background": "white", "padding": 20}


def _chart(found: Sequence[Accuracy]) -> dict[str, Any]:
    """One panel for each task; the numbers of examples stand at equal distances."""
    import altair as alt

    panels = []
    for task in dict.fromkeys(one.task for one in found):
        some = [one for one in found if one.task == task]
        points = [
            {"shots": one.shots, "accuracy": one.accuracy, "low": one.interval[0], "high": one.interval[1]}
            for one in some
        ]
        draws = [{"shots": one.shots, "accuracy": value} for one in some for value in one.by_draw]
        x = alt.X("shots:O", title="examples in the prompt", axis=alt.Axis(labelAngle=0))
        scale = alt.Scale(domain=[0, 1])
        y = alt.Y("accuracy:Q", title=None, scale=scale, axis=alt.Axis(format="%", tickCount=5))
        base = alt.Chart(alt.InlineData(points)).encode(x=x)
        panels.append(
            alt.layer(
                alt.Chart(alt.InlineData(draws)).mark_circle(color=BLUE, opacity=0.3, size=26).encode(x=x, y=y),
                base.mark_rule(color=BLUE, strokeWidth=2).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q"),
                base.mark_line(color=BLUE).encode(y=y),
                base.mark_circle(color=BLUE, opacity=1, size=60).encode(
                    y=y, tooltip=["shots:O", *[alt.Tooltip(f"{name}:Q", format=".1%") for name in points[0]][1:]]
                ),
            ).properties(width=240, height=190, title=task)
        )
    return alt.concat(*panels, columns=2).to_dict() | {"config": CHART_CONFIG}
