"""All claims on one page that opens offline: what is said, what was measured, and a picture of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from launch.claims.claim import Chart, Claim, Outcome
from launch.views.page import CHART_CONFIG, embed, escape, made_by, page

if TYPE_CHECKING:
    import altair as alt

_STYLE = ".holds { color: #12a594; font-weight: 600; } .fails { color: #e8710a; font-weight: 600; }"


def claims_page(title: str, command: str, found: Sequence[tuple[Claim, Outcome, float]]) -> str:
    """The page of what came out of some claims, each with how long it took in seconds."""
    body = f"<h1>{escape(title)}</h1>{made_by(command)}"
    for claim, outcome, seconds in found:
        body += f"<h2>{escape(claim.sentence)}</h2><p class='quiet'>{escape(claim.name)}, {seconds:.0f} s</p><ul>"
        for check in outcome.checks:
            mark = "<span class='holds'>✓</span>" if check.holds else "<span class='fails'>✗</span>"
            body += f"<li>{mark} {escape(check.told())}</li>"
        body += "</ul>" + "".join(f"<p>{escape(note)}</p>" for note in outcome.notes)
        for number, chart in enumerate(outcome.charts):
            body += embed(f"{claim.name}_{number}", draw(chart))
    return page(title, body, _STYLE)


def draw(chart: Chart) -> dict[str, Any]:
    """The Vega-Lite specification of a chart."""
    import altair as alt

    base = alt.Chart(alt.InlineData(chart.rows), title=chart.title).properties(width=620, height=300)
    is_bar = chart.mark == "bar"
    scale = alt.Scale(type="log") if chart.log_x else alt.Undefined
    kind = "x:N" if is_bar else "x:Q"
    x = alt.X(kind, title=chart.x, sort=None) if is_bar else alt.X(kind, title=chart.x, scale=scale)
    marks: dict[str, alt.Chart] = {
        "line": base.mark_line(point=True),
        "bar": base.mark_bar(),
    }
    encoded = marks[chart.mark].encode(x=x, y=alt.Y("y:Q", title=chart.y), tooltip=[kind, "y:Q"])
    if any("series" in row for row in chart.rows):
        encoded = encoded.encode(color=alt.Color("series:N", title=None), tooltip=["series:N", kind, "y:Q"])
        encoded = encoded.encode(xOffset="series:N") if is_bar else encoded
    return encoded.to_dict() | {"config": CHART_CONFIG}
