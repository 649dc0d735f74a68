"""A law of scaling: its five numbers with intervals, and its curves among the runs that it was fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from launch.views.page import CHART_CONFIG, embed, escape
from train.scaling import Law, Point

_MEANING = (
    "Fitted to the last value of each run by the Huber loss of differences of logarithms (Hoffmann et al. 2022); "
    "intervals hold 95% of the fits to resampled runs. Parameters are all of the network's, the embedding among them. "
    "Far from the runs that were made, a law says little."
)
CURVE = 40  # Points of each curve.


def rows_of(law: Law) -> list[tuple[str, str, str]]:
    """Each number of the law, its value and its interval."""
    named = [(name, getattr(law, name)) for name in ("E", "A", "alpha", "B", "beta")]
    named.append(("beta / (alpha + beta)", law.exponent))
    return [(name, f"{found.mean:.4g}", f"{found.low:.4g} to {found.high:.4g}") for name, found in named]


def as_text(law: Law) -> str:
    """The law for a terminal."""
    lines = [f"{name:<22}  {value:<9}  {interval}" for name, value, interval in rows_of(law)]
    return "\n".join(
        ["E + A / parameters^alpha + B / tokens^beta, with 95% intervals", *lines, f"off by {law.error:.2%} (median)"]
    )


def section(law: Law, points: Sequence[Point], metric: str) -> str:
    """What a page says of the law, as HTML."""
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows_of(law))
    return f"""<h2>Scaling</h2>
<p>{escape(metric)} = E + A / parameters<sup>alpha</sup> + B / tokens<sup>beta</sup>,
off by {law.error:.2%} (median)</p>
<table class="results">{rows}</table>
{embed("scaling", scaling_chart(law, points, metric))}
<p>{escape(_MEANING)}</p>"""


def scaling_chart(law: Law, points: Sequence[Point], metric: str) -> dict[str, Any]:
    """Runs as dots and the law as lines over the number of parameters, a color for each number of tokens."""
    import altair as alt

    sizes = [point.parameters for point in points]
    dots = [{"parameters": point.parameters, "tokens": f"{point.tokens:,}", "loss": point.loss} for point in points]
    lines = [
        {"parameters": size, "tokens": f"{tokens:,}", "loss": law.loss(size, tokens)}
        for tokens in sorted({point.tokens for point in points})
        for size in np.geomspace(min(sizes), max(sizes), CURVE).tolist()
    ]
    logarithmic = alt.Scale(type="log", nice=False, padding=12)
    x = alt.X("parameters:Q", title="parameters", scale=logarithmic, axis=alt.Axis(grid=False, format="~s"))
    y = alt.Y("loss:Q", title=metric, scale=alt.Scale(type="log", nice=False, padding=12))
    order = [f"{tokens:,}" for tokens in sorted({point.tokens for point in points})]
    color = alt.Color(
        "tokens:N", title="tokens", sort=order, scale=alt.Scale(domain=order, scheme="viridis"),
        legend=alt.Legend(orient="right"),
    )  # fmt: skip
    chart = alt.layer(
        alt.Chart(alt.InlineData(lines)).mark_line().encode(x=x, y=y, color=color),
        alt.Chart(alt.InlineData(dots)).mark_circle(size=60, opacity=1).encode(
            x=x, y=y, color=color, tooltip=["parameters:Q", "tokens:N", alt.Tooltip("loss:Q", format=".4f")]
        ),
    ).properties(width=560, height=320)  # fmt: skip
    return chart.to_dict() | {"config": CHART_CONFIG}
