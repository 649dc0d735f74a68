"""The attention charts: all heads as small pictures, one head as a heat map and as lines between tokens.

Shapes: L layers, N heads, T query length, S key length, C cells: those of the lower triangle where attention is
causal, all otherwise. The view with lines is that of BertViz (Vig 2019); the hovering and picking are Vega-Lite
selections.
"""

from __future__ import annotations

import base64
import math
import struct
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from launch.views.page import BLUE, CHART_CONFIG, ORANGE

if TYPE_CHECKING:
    import altair as alt

_UNITS = 1000  # weights travel as whole thousandths: three decimals are more than an eye can tell apart
_SIGNS = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥"}


def visible(token: str) -> str:
    """`token` with its white space shown as signs (␣ ↵ ␍ ⇥) and an empty one as ∅."""
    return "".join(_SIGNS.get(character, character) for character in token) or "∅"


def is_wide(character: str) -> bool:
    """Whether a character takes two columns, as Chinese ones do."""
    return unicodedata.east_asian_width(character) in "WF"


@dataclass(frozen=True)
class Seen:
    """What the panels show."""

    queries: Sequence[str]  # the T tokens that look
    keys: Sequence[str]  # the S tokens that are looked at
    weights_LNTS: np.ndarray  # float, not checked here
    causal: bool = True  # queries and keys are the same tokens, and none looks ahead
    mean: bool = False  # whether the last head is the mean of the others
    who: tuple[str, str] = ("query: who looks", "key: at whom")  # what both axes are called


def linked_panels(seen: Seen, picked: tuple[int, int], looking: int | None = None) -> dict[str, Any]:
    """A Vega-Lite specification of the three panels, with `concat`, `params`, `datasets` and `config`.

    `picked` is the (layer, head) shown at first; `looking` is a query that is highlighted from the start.
    """
    import altair as alt

    layers, heads = seen.weights_LNTS.shape[:2]
    # Altair sorts numbers, or it sorts strings.
    names: list[Any] = [*map(str, range(heads - 1)), "mean"] if seen.mean else list(range(heads))
    spec: dict[str, Any] = {
        "$schema": alt.SCHEMA_URL,
        "concat": _panels(seen, names),
        "params": [
            {"name": "tokens", "value": [visible(token) for token in seen.queries]},
            {"name": "keys", "value": [visible(token) for token in seen.keys]},
            *_selections((picked[0], names[picked[1]]), looking),
        ],
        "resolve": {"scale": {"opacity": "independent", "strokeWidth": "independent"}},
        "spacing": 28,
        "config": CHART_CONFIG,
    }
    T, S = len(seen.queries), len(seen.keys)
    cells = np.tril_indices(T) if seen.causal else np.indices((T, S)).reshape(2, -1)
    units_LNC = np.rint(seen.weights_LNTS[..., *cells] * _UNITS).astype(int)
    spec["datasets"] = {
        "heads": [
            {"layer": layer, "head": names[head], "units": units_LNC[layer, head].tolist()}
            for layer, head in np.ndindex(layers, heads)
        ],
        "pictures": [
            {"layer": layer, "head": names[head], "picture": _picture(seen.weights_LNTS[layer, head], seen.causal)}
            for layer, head in np.ndindex(layers, heads)
        ],
        "queries": [{"query": place} for place in range(T)],
        "keys": [{"key": place} for place in range(S)],
    }
    return spec


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


def _panels(seen: Seen, names: list[Any]) -> list[dict[str, Any]]:
    """The grid of heads, the lines and the heat map; `_selections` ties them."""
    import altair as alt

    step = max(8, min(24, 520 // max(len(seen.queries), len(seen.keys))))
    query = f"floor((datum.number - 1) / {len(seen.keys)})"
    key = f"(datum.number - 1) % {len(seen.keys)}"
    if seen.causal:
        query = "floor((sqrt(8 * datum.number - 7) - 1) / 2)"
        key = "datum.number - 1 - datum.query * (datum.query + 1) / 2"
    # Only the picked head is unpacked from its row of thousandths: entry i of its cells, row after row.
    cells = (
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
    return [_grid(len(seen.weights_LNTS), names), _lines(cells, seen, step), _heat_map(cells, seen, step)]


def _grid(layers: int, names: list[Any]) -> dict[str, Any]:
    """All heads as small pictures, rows layers, columns heads; a click picks one."""
    import altair as alt

    heads = len(names)
    size = max(28, min(64, 384 // heads))
    head = alt.X("head:O", title="head", sort=names, axis=alt.Axis(labelAngle=0, domain=False, ticks=False))
    layer = alt.Y("layer:O", title="layer", axis=alt.Axis(domain=False, ticks=False))
    base = alt.Chart(alt.NamedData("pictures")).encode(
        x=head.scale(paddingInner=0.12, paddingOuter=0.06), y=layer.scale(paddingInner=0.12, paddingOuter=0.06)
    )
    pictures = base.mark_image(width=size * 0.88, height=size * 0.88, aspect=False).encode(url="picture:N")
    frames = (
        base.mark_rect(fill=BLUE, fillOpacity=0.03, cursor="pointer", cornerRadius=2)
        .encode(
            stroke=_either({"param": "pick"}, ORANGE, "currentColor"),
            strokeWidth=_either({"param": "pick"}, 3, 0.5),
            strokeOpacity=_either({"param": "pick"}, 1, 0.3),
            tooltip=["layer:O", "head:O"],
        )
        .properties(name="frames")
    )
    return _panel(
        alt.layer(pictures, frames),
        width=heads * size,
        height=layers * size,
        title=alt.TitleParams("All heads", subtitle="click one to pick it"),
    )


def _lines(cells: alt.Chart, seen: Seen, step: float) -> dict[str, Any]:
    """Queries left, keys right, and a line for each weight that can be seen."""
    import altair as alt

    label = _label_width([*seen.queries, *seen.keys], step)
    width, length = 280, max(len(seen.queries), len(seen.keys))
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

    height, width = len(seen.queries) * step, len(seen.keys) * step

    def axis(names: str, tokens: Sequence[str]) -> dict[str, Any]:
        return {
            "axis": alt.Axis(
                labelExpr=f"{names}[datum.value]", labelFontSize=_font_size(step),
                labelLimit=_label_width(tokens, step), labelOverlap=False, ticks=False, domain=False, labelPadding=4,
            ),
            "scale": alt.Scale(domain=list(range(len(tokens))), paddingInner=0, paddingOuter=0),
        }  # fmt: skip

    key = alt.X("key:O", title=seen.who[1], **axis("keys", seen.keys))
    query = alt.Y("query:O", title=seen.who[0], **axis("tokens", seen.queries))
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
    return _panel(
        alt.layer(heat, row, column),
        width=width,
        height=height,
        title=alt.TitleParams(alt.expr(named), subtitle="one row a query; shade: square root of the weight"),
    )


def _panel(chart: alt.LayerChart | alt.FacetChart, **properties: Any) -> dict[str, Any]:
    spec = chart.properties(**properties).to_dict()
    return {key: part for key, part in spec.items() if key not in ("$schema", "config")}


def _either(test: str | dict[str, Any], then: object, otherwise: object) -> Any:
    """An encoding that is `then` where `test`, a predicate or an expression, holds."""
    return {"condition": {"test": test, "value": then}, "value": otherwise}


def _font_size(step: float) -> float:
    return min(12, max(8, step * 0.85))


def _label_width(tokens: Sequence[str], step: float) -> int:
    """Points that the longest token needs, within reason; a Chinese character is about twice as wide as a Latin one."""
    wide = max(sum(1.0 if is_wide(character) else 0.62 for character in visible(token)) for token in tokens)
    return min(90, math.ceil(wide * _font_size(step)) + 4)


def _picture(weights_TS: np.ndarray, causal: bool) -> str:
    """One head as a small PNG in a data URL: blue whose opacity grows with the weight's square root.

    A picture for each head keeps thirty heads of thousands of cells quick to draw, which as marks they are not.
    """
    T, S = weights_TS.shape
    pool = -(-max(T, S) // 96)  # each pixel shows the largest of pool x pool weights, so that no bright cell is lost
    pooled_TS = np.pad(weights_TS, ((0, -T % pool), (0, -S % pool)))
    down, across = len(pooled_TS) // pool, pooled_TS.shape[1] // pool
    pooled_TS = pooled_TS.reshape(down, pool, across, pool).max((1, 3))
    level_TS = 1 + np.rint(14 * np.sqrt(np.clip(pooled_TS, 0, 1))).astype(np.uint8)
    level_TS = np.tril(level_TS) if causal else level_TS
    level_TS = level_TS.repeat(-(-96 // down), 0).repeat(-(-96 // across), 1)  # nearest neighbour: browsers would blur
    opacity = [0, *(round(255 * (0.05 + 0.95 * level / 14)) for level in range(15))]
    colour = bytes.fromhex(BLUE[1:])

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = level_TS.shape
    rows = b"".join(b"\0" + row.tobytes() for row in level_TS)
    png = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        + chunk(b"PLTE", colour * 16)
        + chunk(b"tRNS", bytes(opacity))
        + chunk(b"IDAT", zlib.compress(rows, 9))
        + chunk(b"IEND", b"")
    )
    return "data:image/png;base64," + base64.b64encode(png).decode()
