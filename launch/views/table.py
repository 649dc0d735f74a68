"""A table of numbers as colors, with what is told of a cell when it is pointed at.

Shapes: R rows, C columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from launch.views.page import BLUE, ORANGE, panel

_DARK = 0.55  # From which opacity on letters on a cell are white.


@dataclass(frozen=True)
class Table:
    """Numbers by row and column."""

    values_RC: np.ndarray  # float; NaN where there is no cell
    rows: Sequence[str]
    columns: Sequence[str]
    axes: tuple[str, str]  # what rows and columns are
    unit: str  # what a number is
    most: float = 1.0  # of which size a number gets the full color
    root: bool = False  # whether the color grows with the square root
    written: Sequence[Sequence[str]] | None = None  # text in the cells [R][C]
    told: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)  # more of a cell, by name, [R][C]


def heat_map(table: Table, title: str, subtitle: str | Sequence[str], step: tuple[float, float]) -> dict[str, Any]:
    """A panel for a Vega-Lite specification: orange for numbers above 0, blue below, more where they are larger.

    Where none is below 0, all is blue.

    Args:
      step: width and height of a cell, in points.
    """
    import altair as alt

    values_RC = np.asarray(table.values_RC, float)
    signed = bool(np.nanmin(values_RC) < 0) if np.isfinite(values_RC).any() else False
    size_RC = np.clip(np.abs(values_RC) / (table.most or 1), 0, 1)
    data = []
    for row, column in zip(*np.nonzero(np.isfinite(values_RC)), strict=True):
        cell = {
            "row": int(row), "column": int(column), "value": round(float(values_RC[row, column]), 5),
            "size": round(float(np.sqrt(size_RC[row, column]) if table.root else size_RC[row, column]), 4),
            "r": table.rows[row], "c": table.columns[column],
        }  # fmt: skip
        if table.written is not None:
            cell["text"] = table.written[row][column]
        data.append(cell | {name: of[row][column] for name, of in table.told.items()})
    size = {"width": step[0] * len(table.columns), "height": step[1] * len(table.rows)}
    tooltips = [
        alt.Tooltip("r:N", title=table.axes[0]), alt.Tooltip("c:N", title=table.axes[1]),
        alt.Tooltip("value:Q", title=table.unit, format=".4~f"), *(alt.Tooltip(f"{name}:N") for name in table.told),
    ]  # fmt: skip
    base = alt.Chart(alt.InlineData(data)).encode(
        x=alt.X("column:O", title=table.axes[1], **_axis(table.columns, step[0], across=True)),
        y=alt.Y("row:O", title=table.axes[0], **_axis(table.rows, step[1], across=False)),
    )
    color = alt.condition("datum.value < 0", alt.value(BLUE), alt.value(ORANGE)) if signed else alt.value(BLUE)
    opacity = alt.Opacity("size:Q", scale=alt.Scale(domain=[0, 1], range=[0.04, 1]), legend=None)
    layers = [base.mark_rect(cornerRadius=1).encode(color=color, opacity=opacity, tooltip=tooltips)]
    if table.written is not None:
        ink = alt.condition(f"datum.size > {_DARK}", alt.value("white"), alt.value("currentColor"))
        text = base.mark_text(fontSize=min(11, step[1] * 0.55), limit=step[0] - 4, clip=True)
        layers.append(text.encode(text="text:N", color=ink, tooltip=tooltips))
    return panel(alt.layer(*layers).properties(**size, title=alt.TitleParams(title, subtitle=subtitle)))


def _axis(names: Sequence[str], step: float, across: bool) -> dict[str, Any]:
    import altair as alt

    size = min(11, max(7, step * 0.8))
    longest = max(map(len, names), default=0)
    upright = across and longest * size * 0.62 > step
    axis = alt.Axis(
        labelExpr=f"{json.dumps(list(names))}[datum.value]", labelAngle=-90 if upright else 0, labelFontSize=size,
        labelLimit=130, labelOverlap=False, ticks=False, domain=False, labelPadding=4, grid=False,
        orient="top" if across else "left",
    )  # fmt: skip
    return {"axis": axis, "scale": alt.Scale(domain=list(range(len(names))), paddingInner=0.04, paddingOuter=0)}


def side_by_side(panels: Sequence[Mapping[str, Any]], columns: int | None = None) -> dict[str, Any]:
    """Panels as one Vega-Lite specification, or as a part of one."""
    return {
        "concat": list(panels), "columns": columns or len(panels), "spacing": 32,
        "resolve": {"scale": {"opacity": "independent", "color": "independent"}},
    }  # fmt: skip
