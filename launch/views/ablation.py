"""The result of an ablation: learning curves with bands, a forest plot, and tables for people, papers and programs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from launch.views.page import BLUE, CHART_CONFIG, embed, escape, made_by, page

if TYPE_CHECKING:
    from train.comparison import Comparison, Estimate

COLUMNS = ("variant", "seeds", "value", "95% interval", "difference", "95% interval of it", "p (Holm)")
_MEANING = (
    "Values are means over seeds with 95% intervals by Student's t; lower is better. Differences are taken seed by "
    "seed, between runs that start from the same seed and read the same text in the same order, and p-values are those "
    "of a paired t-test, two-sided, corrected for the number of comparisons (Holm 1979). Few seeds make wide "
    "intervals: a difference that is not there may just not have been seen."
)
Curves = Mapping[str, Sequence[tuple[int, "Estimate"]]]  # variant -> (step, mean over seeds with its interval)


def rows_of(found: Sequence[Comparison]) -> list[list[str]]:
    """The table's rows, as COLUMNS names them."""
    rows = []
    for one in found:
        difference, interval = ("baseline", "")
        if one.difference is not None:
            difference, interval = f"{one.difference.mean:+.4f}", _interval(one.difference, "+.4f")
        p = "" if one.p is None else "<0.0001" if one.p < 1e-4 else f"{one.p:.4f}"
        rows.append(
            [one.variant, str(one.seeds), f"{one.value.mean:.4f}", _interval(one.value, ".4f"), difference, interval, p]
        )
    return rows


def _interval(value: Estimate, form: str) -> str:
    return f"{value.low:{form}} to {value.high:{form}}" if math.isfinite(value.low) else ""


def as_text(found: Sequence[Comparison]) -> str:
    """The table in columns."""
    rows = [list(COLUMNS), *rows_of(found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def as_markdown(found: Sequence[Comparison]) -> str:
    """The table in Markdown."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows_of(found)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def as_csv(found: Sequence[Comparison]) -> str:
    """The numbers, unrounded."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["variant", "seeds", "value", "low", "high", "difference", "difference_low", "difference_high", "p"]
    )
    for one in found:
        difference = one.difference
        numbers = [one.value.mean, one.value.low, one.value.high]
        numbers += [difference.mean, difference.low, difference.high] if difference else [None] * 3
        writer.writerow([one.variant, one.seeds, *numbers, one.p])
    return out.getvalue()


def as_latex(found: Sequence[Comparison]) -> str:
    """The table in LaTeX, for the package booktabs."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(_latex(cell) for cell in cells) + r" \\"

    body = "\n".join(line(row) for row in rows_of(found))
    parts = [r"\begin{tabular}{lrrlrlr}", r"\toprule", line(COLUMNS), r"\midrule", body, r"\bottomrule"]
    return "\n".join([*parts, r"\end{tabular}", ""])


def _latex(text: str) -> str:
    for character in "\\":
        text = text.replace(character, r"\textbackslash ")
    for character in "&%$#_{}":
        text = text.replace(character, f"\\{character}")
    return text.replace("<", "$<$")


def ablation_page(
    title: str,
    metric: str,
    found: Sequence[Comparison],
    curves: Curves,
    failures: Mapping[str, str],
    command: str,
    ended: Sequence[str] = (),
    fitted: str = "",
) -> str:
    """A self-contained HTML page: what differs by how much, how it was learnt, what failed, what was ended early.

    Args:
      fitted: what was fitted to the runs, as HTML (`launch.views.scaling.section`).
    """
    head = "".join(f"<th>{escape(column)}</th>" for column in COLUMNS)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows_of(found))
    failed = "".join(f"<p>{escape(run)}: <code>{escape(error)}</code></p>" for run, error in failures.items())
    body = f"""<h1>{escape(title)}</h1>
<p class="quiet">{escape(metric)}</p>
<table class="results"><tr>{head}</tr>{rows}</table>
<p>{escape(_MEANING)}</p>
{f"<h2>Difference to the baseline</h2>{embed('forest', forest_chart(found))}" if len(found) > 1 else ""}
<h2>Learning</h2>
{embed("curves", curves_chart(curves, metric))}
<p class="quiet">Lines are means over seeds, bands their 95% intervals.</p>
{fitted}
{f"<h2>Failed</h2>{failed}" if failed else ""}
{f"<h2>Ended early</h2>{''.join(f'<p>{escape(why)}</p>' for why in ended)}" if ended else ""}
{made_by(command)}"""
    style = "table.results td, table.results th { text-align: left; padding: 3px 18px 3px 0; }"
    return page(title, body, style)


def forest_chart(found: Sequence[Comparison]) -> dict[str, Any]:
    """Each variant's difference to the baseline with its interval, and a line where there is none."""
    import altair as alt

    rows = []
    for one in found:
        if one.difference is not None:
            low, high = (end if math.isfinite(end) else None for end in (one.difference.low, one.difference.high))
            rows.append({"variant": one.variant, "difference": one.difference.mean, "low": low, "high": high})
    base = alt.Chart(alt.InlineData(rows)).encode(
        y=alt.Y("variant:N", title=None, sort=None, axis=alt.Axis(labelLimit=420))
    )
    zero = alt.Chart(alt.InlineData([{"zero": 0}])).mark_rule(strokeDash=[5, 4], stroke="currentColor", opacity=0.5)
    x = alt.X("difference:Q", title="difference to the baseline (left of the line is better)")
    chart = alt.layer(
        zero.encode(x="zero:Q"),
        base.transform_filter("datum.low !== null").mark_rule(color=BLUE, strokeWidth=2).encode(x="low:Q", x2="high:Q"),
        base.mark_circle(color=BLUE, opacity=1, size=80).encode(
            x=x,
            tooltip=["variant:N", *[alt.Tooltip(f"{name}:Q", format="+.4f") for name in ("difference", "low", "high")]],
        ),
    ).properties(width=520, height=max(60, 28 * len(rows)))
    return chart.to_dict() | {"config": CHART_CONFIG}


def curves_chart(curves: Curves, metric: str) -> dict[str, Any]:
    """The metric through training, a line and a band for each variant."""
    import altair as alt

    rows = []
    for variant, points in curves.items():
        for step, value in points:
            low, high = ((end if math.isfinite(end) else value.mean) for end in (value.low, value.high))
            rows.append({"variant": variant, "step": step, "value": value.mean, "low": low, "high": high})
    base = alt.Chart(alt.InlineData(rows)).encode(
        x=alt.X("step:Q", title="step", axis=alt.Axis(grid=False)),
        color=alt.Color("variant:N", title=None, sort=None, legend=alt.Legend(orient="right", labelLimit=420)),
    )
    y = alt.Scale(zero=False)
    chart = alt.layer(
        base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", title=metric, scale=y), y2="high:Q"),
        base.mark_line(point=True).encode(
            y=alt.Y("value:Q", scale=y), tooltip=["variant:N", "step:Q", alt.Tooltip("value:Q", format=".4f")]
        ),
    ).properties(width=560, height=320)
    return chart.to_dict() | {"config": CHART_CONFIG}
