"""The attention charts: all heads as small pictures, one head as a heat map and as lines between tokens.

Shapes: L layers, N heads, T query length, S key length, C cells: those of the lower triangle where attention is
causal, all otherwise. The view with lines is that of BertViz (Vig 2019); the hovering and picking are Vega-Lite
selections.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from launch.views.packed import cells
from launch.views.page import BLUE, CHART_CONFIG, ORANGE, panel
from launch.views.pieces import Pieces, is_wide, merged, visible
from launch.views.thumbnail import thumbnail

if TYPE_CHECKING:
    import altair as alt

_UNITS = 1000  # weights travel as whole thousandths: three decimals are more than an eye can tell apart


@dataclass(frozen=True)
class Seen:
    """Who looks at whom, and how much: the attention weights of all heads."""

    queries: Pieces  # of the T tokens that look
    keys: Pieces  # of the S tokens that are looked at
    weights_LNTS: np.ndarray  # float32, not checked here
    causal: bool = True  # queries and keys are the same tokens, and none looks ahead
    sinks: bool = False  # rows may sum to less than 1: the rest went to the head's sink (config.model.attention_sinks)
    mean: bool = False  # whether the last head is the mean of the others
    who: tuple[str, str] = ("query: who looks", "key: at whom")  # what both axes are called

    @property
    def names(self) -> list[Any]:
        """What the heads are called. Altair sorts numbers, or it sorts strings."""
        heads = self.weights_LNTS.shape[1]
        return [*map(str, range(heads - 1)), "mean"] if self.mean else list(range(heads))

    @property
    def split(self) -> bool:
        """Whether characters are cut into tokens."""
        return self.queries.split or self.keys.split

    def in_pieces(self) -> Seen:
        """The same between whole characters instead of tokens."""
        if not self.split:
            return self
        whole = {"queries": Pieces.whole(self.queries.texts), "keys": Pieces.whole(self.keys.texts)}
        return replace(self, **whole, weights_LNTS=merged(self.weights_LNTS, self.queries, self.keys))


def linked_panels(seen: Seen, picked: tuple[int, int], looking: int | None = None) -> dict[str, Any]:
    """A Vega-Lite specification of the three panels, with `concat`, `params`, `datasets` and `config`.

    `picked` is the (layer, head) shown at first; `looking` is a query that is highlighted from the start. The tokens
    are shown one by one. The weights are not yet there: see `with_heads` and `linked_page`.
    """
    import altair as alt

    return {
        "$schema": alt.SCHEMA_URL,
        "concat": _panels(seen),
        "params": [
            {"name": "tokens", "value": [visible(token) for token in seen.queries.tokens]},
            {"name": "keys", "value": [visible(token) for token in seen.keys.tokens]},
            *_selections((picked[0], seen.names[picked[1]]), looking),
        ],
        "resolve": {"scale": {"opacity": "independent", "strokeWidth": "independent"}},
        "spacing": 28,
        "align": "none",  # Rows of panels need not line up.
        "config": CHART_CONFIG,
        "datasets": {
            "queries": [{"query": place} for place in range(len(seen.queries.tokens))],
            "keys": [{"key": place} for place in range(len(seen.keys.tokens))],
        },
    }


def with_heads(spec: dict[str, Any], seen: Seen, picked: tuple[int, int]) -> dict[str, Any]:
    """The panels with data for a still picture: small pictures of all heads, the weights of the one `picked`."""
    weights_LNTS, (layer, head) = seen.weights_LNTS, picked
    T, S = weights_LNTS.shape[2:]
    rows, columns = cells(T, S, seen.causal)
    units_C = np.rint(weights_LNTS[layer, head, rows, columns] * _UNITS).astype(int)
    heads = [{"layer": layer, "head": seen.names[head], "units": units_C.tolist()}]
    return spec | {"datasets": spec["datasets"] | {"heads": heads, "pictures": pictures(seen)}}


def pictures(seen: Seen) -> list[dict[str, Any]]:
    """Small pictures of all heads, as data."""
    return [
        {"layer": layer, "head": name, "picture": thumbnail(seen.weights_LNTS[layer, number], seen.causal)}
        for layer in range(len(seen.weights_LNTS))
        for number, name in enumerate(seen.names)
    ]


def unpacking(seen: Seen, id: str, by_token: bool) -> dict[str, Any]:
    """What `charts.js` has to know to put the weights into the panels, from the bytes in the page's element `id`."""
    T, S = seen.weights_LNTS.shape[2:]
    merge = None if by_token else [list(seen.queries.starts), list(seen.keys.starts)]
    return {
        "packed": {
            "id": id, "layers": len(seen.weights_LNTS), "names": seen.names, "queries": T, "keys": S,
            "causal": seen.causal, "merge": merge, "blue": BLUE,
        }
    }  # fmt: skip


def _selections(picked: tuple[int, int | str], looking: int | None) -> list[dict[str, Any]]:
    """The three selections that tie the panels: a head, a query and a key, each fed by the views it names.

    Written as Vega-Lite has them: Altair 6 renames layers when it concatenates charts, so that a selection
    shared by two of them loses its views.
    """

    def hover(name: str, field: str, views: list[str]) -> dict[str, Any]:
        # Vega-Lite calls the marks of a view NAME_marks; without naming them, any mark of a panel would count.
        over, out = (", ".join(f"@{view}_marks:{event}" for view in views) for event in ("pointerover", "pointerout"))
        return {
            "name": name,
            "select": {"type": "point", "fields": [field], "on": over, "clear": out, "toggle": False},
            "views": views,
        }

    look = hover("look", "query", ["left", "cells"])
    if looking is not None:
        look["value"] = [{"query": looking}]
    return [
        {
            "name": "pick",
            "select": {"type": "point", "fields": ["layer", "head"], "on": "click", "clear": False, "toggle": False},
            "value": [{"layer": picked[0], "head": picked[1]}],
            "views": ["frames"],
        },
        look,
        hover("seen", "key", ["right"]),
    ]


def _panels(seen: Seen) -> list[dict[str, Any]]:
    """The grid of heads, the lines and the heat map; `_selections` ties them."""
    import altair as alt

    step = max(8, min(24, 520 // max(len(seen.queries.tokens), len(seen.keys.tokens))))
    query = f"floor((datum.number - 1) / {len(seen.keys.tokens)})"
    key = f"(datum.number - 1) % {len(seen.keys.tokens)}"
    if seen.causal:
        query = "floor((sqrt(8 * datum.number - 7) - 1) / 2)"
        key = "datum.number - 1 - datum.query * (datum.query + 1) / 2"
    # Only the picked head is unpacked from its row of thousandths: entry i of its cells, row after row.
    unfolded = (
        alt.Chart(alt.NamedData("heads"))
        .transform_filter({"param": "pick"})
        .transform_flatten(["units"])
        .transform_window(number="row_number()")
        .transform_calculate(query=query)
        .transform_calculate(key=key)
        .transform_calculate(
            weight=f"datum.units / {_UNITS}",
            looks="tokens[datum.query] + '  (' + datum.query + ')'",
            at="keys[datum.key] + '  (' + datum.key + ')'",
        )
    )
    grid = pictures_panel(len(seen.weights_LNTS), seen.names, "All heads", "click one to pick it")
    return [grid, _lines(unfolded, seen, step), _heat_map(unfolded, seen, step)]


def pictures_panel(layers: int, names: list[Any], title: str, subtitle: str) -> dict[str, Any]:
    """All heads as small pictures; a click picks one. Rows are layers, or columns if there are many."""
    import altair as alt

    deep = layers > max(12, len(names))
    columns, rows = (layers, len(names)) if deep else (len(names), layers)
    size = max(32, min(64, 384 // columns))
    across, down = ("layer", "head") if deep else ("head", "layer")
    axis = alt.Axis(labelAngle=0, domain=False, ticks=False, grid=False)
    scale = alt.Scale(paddingInner=0.12, paddingOuter=0.06)
    sort = {"head": names, "layer": "ascending"}
    base = alt.Chart(alt.NamedData("pictures")).encode(
        x=alt.X(f"{across}:O", title=across, sort=sort[across], axis=axis, scale=scale),
        y=alt.Y(f"{down}:O", title=down, sort=sort[down], axis=axis, scale=scale),
    )
    images = base.mark_image(width=size * 0.88, height=size * 0.88, aspect=False).encode(url="picture:N")
    frames = (
        base.mark_rect(fill=BLUE, fillOpacity=0.03, cursor="pointer", cornerRadius=2)
        .encode(
            stroke=_either({"param": "pick", "empty": False}, ORANGE, "currentColor"),
            strokeWidth=_either({"param": "pick", "empty": False}, 3, 0.5),
            strokeOpacity=_either({"param": "pick", "empty": False}, 1, 0.3),
            tooltip=["layer:O", "head:O"],
        )
        .properties(name="frames")
    )
    return _panel(
        alt.layer(images, frames),
        width=columns * size,
        height=rows * size,
        title=alt.TitleParams(title, subtitle=subtitle),
    )


def _lines(cells: alt.Chart, seen: Seen, step: float) -> dict[str, Any]:
    """Queries left, keys right, and a line for each weight that can be seen."""
    import altair as alt

    label = _label_width([*seen.queries.tokens, *seen.keys.tokens], step)
    width, length = 280, max(len(seen.queries.tokens), len(seen.keys.tokens))
    left, right, font = label + 6, width - label - 6, _font_size(step)
    scale = alt.Scale(domain=[-0.5, length - 0.5], reverse=True, nice=False, zero=False)
    at_query = alt.Y("query:Q", scale=scale, axis=None)
    at_key = alt.Y("key:Q", scale=scale, axis=None)
    hovered = "isValid(look.query) || isValid(seen.key)"
    lines = (
        cells.transform_filter("datum.weight >= 0.005")
        .mark_rule(strokeCap="round")
        .encode(
            x=alt.value(left),
            x2=alt.value(right),
            y=at_query,
            y2="key:Q",
            strokeWidth=alt.StrokeWidth(
                "weight:Q", scale=alt.Scale(domain=[0, 1], range=[0.4, min(6, step)]), legend=None
            ),
            strokeOpacity=alt.StrokeOpacity(
                "weight:Q", scale=alt.Scale(domain=[0, 1], range=[0, 1], type="sqrt"), legend=None
            ),
        )
    )
    every = lines.encode(stroke=alt.value(BLUE), opacity=_either(hovered, 0.12, 0.7))
    some = (
        lines.transform_filter(hovered)
        .transform_filter({"param": "look"})
        .transform_filter({"param": "seen"})
        .encode(stroke=alt.value(ORANGE))
    )
    shade = (
        cells.transform_filter({"param": "look", "empty": False})
        .mark_bar(height=step, cornerRadius=2, color=ORANGE)
        .encode(
            x=alt.value(right + 2),
            x2=alt.value(width),
            y=at_key,
            opacity=alt.Opacity("weight:Q", scale=alt.Scale(domain=[0, 1], range=[0, 0.8], type="sqrt"), legend=None),
        )
    )
    left_places, right_places = alt.Chart(alt.NamedData("queries")), alt.Chart(alt.NamedData("keys"))
    query_name = left_places.transform_calculate(name="tokens[datum.query]")
    queries = query_name.mark_text(align="right", fontSize=font, limit=label).encode(
        x=alt.value(left - 4),
        y=at_query,
        text="name:N",
        opacity=_either({"param": "look"}, 1, 0.35),
    )
    key_name = right_places.transform_calculate(name="keys[datum.key]")
    keys = key_name.mark_text(align="left", fontSize=font, limit=label).encode(
        x=alt.value(right + 4),
        y=at_key,
        text="name:N",
        opacity=_either({"param": "seen"}, 1, 0.35),
    )
    hit_queries = left_places.mark_bar(height=step, opacity=0).encode(
        x=alt.value(0), x2=alt.value(width * 0.6), y=at_query
    )
    hit_keys = right_places.mark_bar(height=step, opacity=0).encode(
        x=alt.value(width * 0.6), x2=alt.value(width), y=at_key
    )
    return _panel(
        alt.layer(
            every, some, shade, queries, keys, hit_queries.properties(name="left"), hit_keys.properties(name="right")
        ),
        width=width,
        height=length * step,
        title=alt.TitleParams("Where each token looks", subtitle="left: who looks; right: at whom"),
    )


def _heat_map(cells: alt.Chart, seen: Seen, step: float) -> dict[str, Any]:
    """Queries down, keys across; the row of a hovered query and the column of a hovered key are framed."""
    import altair as alt

    height, width = len(seen.queries.tokens) * step, len(seen.keys.tokens) * step

    def axis(names: str, tokens: Sequence[str]) -> dict[str, Any]:
        return {
            "axis": alt.Axis(
                labelExpr=f"{names}[datum.value]", labelFontSize=_font_size(step),
                labelLimit=_label_width(tokens, step), labelOverlap=False, ticks=False, domain=False, labelPadding=4,
            ),
            "scale": alt.Scale(domain=list(range(len(tokens))), paddingInner=0, paddingOuter=0),
        }  # fmt: skip

    key = alt.X("key:O", title=seen.who[1], **axis("keys", seen.keys.tokens))
    query = alt.Y("query:O", title=seen.who[0], **axis("tokens", seen.queries.tokens))
    heat = (
        cells.mark_rect(color=BLUE)
        .encode(
            x=key,
            y=query,
            opacity=alt.Opacity(
                "weight:Q",
                scale=alt.Scale(domain=[0, 1], range=[0.05, 1], type="sqrt"),
                legend=alt.Legend(title="weight", values=[0, 0.05, 0.25, 0.5, 1], format=".2f", orient="bottom"),
            ),
            tooltip=[
                alt.Tooltip("looks:N", title="query"),
                alt.Tooltip("at:N", title="key"),
                alt.Tooltip("weight:Q", format=".3f"),
            ],
        )
        .properties(name="cells")
    )

    def frame(data: str, selection: str) -> alt.Chart:
        chart = alt.Chart(alt.NamedData(data)).transform_filter({"param": selection, "empty": False})
        return chart.mark_rect(fill=None, stroke=ORANGE, strokeWidth=2, cornerRadius=2, tooltip=None)

    row = frame("queries", "look").encode(x=alt.value(0), x2=alt.value(width), y=query)
    column = frame("keys", "seen").encode(x=key, y=alt.value(0), y2=alt.value(height))
    named = "'Layer ' + pick.layer[0] + ', head ' + pick.head[0]"
    subtitle = ["one row a query; shade: square root of the weight"]
    if seen.causal:
        subtitle.append("a row cannot depend on what comes after its token")
    return _panel(
        alt.layer(heat, row, column),
        width=width,
        height=height,
        title=alt.TitleParams(alt.expr(named), subtitle=subtitle),
    )


def _panel(chart: alt.LayerChart | alt.FacetChart, **properties: Any) -> dict[str, Any]:
    return panel(chart.properties(**properties))


def _either(test: str | dict[str, Any], then: object, otherwise: object) -> Any:
    """An encoding that is `then` where `test`, a predicate or an expression, holds."""
    return {"condition": {"test": test, "value": then}, "value": otherwise}


def _font_size(step: float) -> float:
    return min(12, max(8, step * 0.85))


def _label_width(tokens: Sequence[str], step: float) -> int:
    """Points that the longest token needs, within reason; a Chinese character is about twice as wide as a Latin one."""
    wide = max(sum(1.0 if is_wide(character) else 0.62 for character in visible(token)) for token in tokens)
    return min(90, math.ceil(wide * _font_size(step)) + 4)
