"""Where a run's time went, as one bar."""

from __future__ import annotations

from launch.views.page import BLUE, CHART_CONFIG, ORANGE, embed, escape, page
from train.goodput import KINDS, Goodput

_COLORS = (BLUE, "#8ab4f0", "#12a594", "#7fd1c7", "#b05fd0", "#d3a4e6", "#8f979f", "#c3c8cd", ORANGE, "#f2b98a")


def rows(goodput: Goodput) -> list[tuple[str, float, float]]:
    """(what it was, seconds, share of the whole) of each kind that took any time, and of the whole."""
    total = goodput.total or 1.0
    kinds = [(KINDS[kind], goodput.seconds[kind], goodput.seconds[kind] / total) for kind in KINDS]
    starts = "one start" if goodput.starts == 1 else f"{goodput.starts} starts"
    return [*(row for row in kinds if row[1]), (f"all, from {starts}, {goodput.steps} steps", goodput.total, 1.0)]


def goodput_chart(goodput: Goodput) -> dict[str, object]:
    """A bar of the run's time by kind, as a Vega-Lite chart."""
    import altair as alt

    values = [
        {"kind": f"{kind}: {KINDS[kind]}", "minutes": goodput.seconds[kind] / 60, "order": order}
        for order, kind in enumerate(KINDS)
        if goodput.seconds[kind]
    ]
    names = [value["kind"] for value in values]
    colors = [_COLORS[list(KINDS).index(str(name).split(":")[0])] for name in names]
    bar = (
        alt.Chart(alt.Data(values=values), width=900, height=46)
        .mark_bar()
        .encode(
            x=alt.X("minutes:Q", title="minutes", stack="zero"),
            color=alt.Color(
                "kind:N", scale=alt.Scale(domain=names, range=colors), title=None,
                legend=alt.Legend(orient="bottom", columns=2, labelLimit=600),
            ),
            order="order:Q",
            tooltip=[alt.Tooltip("kind:N"), alt.Tooltip("minutes:Q", format=",.2f")],
        )
    )  # fmt: skip
    return bar.configure(**CHART_CONFIG).to_dict()


def goodput_page(goodput: Goodput, name: str) -> str:
    """A self-contained page about the run called `name`."""
    table = "\n".join(
        f"<tr><td>{escape(what)}</td><td>{seconds:,.1f} s</td><td>{share:.1%}</td></tr>"
        for what, seconds, share in rows(goodput)
    )
    body = (
        f"<h1>{escape(name)}: {goodput.share:.0%} of the time in steps that were kept</h1>\n"
        f"{embed('goodput', goodput_chart(goodput))}<table class='kinds'>{table}</table>"
    )
    style = "table.kinds td { padding: 4px 18px 4px 0; } table.kinds td + td { text-align: right; }"
    return page(f"{name}: goodput", body, style)
