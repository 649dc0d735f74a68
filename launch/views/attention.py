"""Where a network looks: all heads as small pictures, one head as a heat map and as lines between tokens.

Shapes: L layers, N heads, T query length, S key length (T and S are the same tokens here).
Weights are softmax(QK^T/sqrt(d)) ("Attention Is All You Need", section 3.2.1); the view with lines is that of
BertViz (Vig 2019), the hovering is done by Vega-Lite selections.
"""

from __future__ import annotations

import base64
import math
import struct
import unicodedata
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from launch.views.page import BLUE, CHART_CONFIG, ORANGE, embed, escape, page

if TYPE_CHECKING:
    import altair as alt

_SUM_TOLERANCE = 1e-3
_UNITS = 1000  # weights travel as whole thousandths: three decimals are more than an eye can tell apart
_SIGNS = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥"}

# For pictures made without a browser: vl-convert takes the first family that is installed for the whole text.
_FONTS = "DejaVu Sans, sans-serif"
_FONTS_CJK = "Noto Sans CJK SC, Noto Sans SC, PingFang SC, Microsoft YaHei, sans-serif"

_MEANING = (
    "Each row of the heat map is softmax(QKᵀ/√d) for one token: the token’s query is compared with the key of itself "
    "and of every token before it, and the softmax turns the comparisons into shares that sum to 1. The head then "
    "returns the average of the value vectors, weighted by these shares. A causal model cannot look ahead, so nothing "
    "stands above the diagonal. Dark cells and thick lines are large shares; the shading grows with the square root "
    "of the weight, so that small ones can be seen."
)
_CAVEAT = (
    "Attention alone is not an explanation: it shows where a head reads, not what it reads there nor whether the "
    "prediction depends on it. For that, change the head and see what the prediction does."
)


def visible(token: str) -> str:
    """`token` with its white space shown as signs (␣ ↵ ␍ ⇥) and an empty one as ∅."""
    return "".join(_SIGNS.get(character, character) for character in token) or "∅"


def attention_page(
    tokens: Sequence[str],
    weights_LNTS: np.ndarray,
    *,
    title: str,
    command: str,
    structure_svg: str,
    sinks: bool = False,
) -> str:
    """A self-contained HTML page on which hovering a token shows where each head looks.

    `tokens` are the T pieces of the text; `weights_LNTS` are float attention weights [L, N, T, T]; `title` names the
    model and `command` is what made the page (both text); `structure_svg` is an SVG drawing, put in as it is. With
    `sinks` (config.model.attention_sinks) rows may sum to less than 1: the rest went to the head's sink.
    Raises ValueError if the weights are not those of causal attention over `tokens`.
    """
    layers, heads = weights_LNTS.shape[:2] if weights_LNTS.ndim == 4 else (0, 0)
    chart = embed("attention", attention_chart(tokens, weights_LNTS, sinks=sinks))
    body = f"""<h1>{escape(title)}</h1>
<p class="quiet">{layers} layers × {heads} heads over {len(tokens)} tokens. Click a small picture to pick its head;
hover a token, or a cell of the heat map, to see where that token looks; hover on the right-hand side to see who looks
there.</p>
<pre>{escape("".join(tokens))}</pre>
{chart}
{attention_caption(sinks)}
<p class="quiet">Made by <code>{escape(command)}</code></p>
<h2>The network</h2>
<div class="drawing">{structure_svg}</div>"""
    return page(title, body)


def attention_caption(sinks: bool = False) -> str:
    """HTML that says in plain words what is seen in the attention charts, and what is not."""
    sink = " In this model each head also has a sink, which takes a share that is not drawn." if sinks else ""
    return f'<p>{escape(_MEANING + sink)}</p>\n<p class="quiet">{escape(_CAVEAT)}</p>'


def attention_chart(tokens: Sequence[str], weights_LNTS: np.ndarray, *, sinks: bool = False) -> dict[str, Any]:
    """The interactive chart as a Vega-Lite specification for `launch.views.page.embed`; see `attention_page`."""
    _check(tokens, weights_LNTS, sinks)
    panels = _panels(tokens, weights_LNTS)
    # Side by side where the window has room, else one below the other. Vega lays out by a signal, for which
    # neither Altair nor Vega-Lite has a word, but Vega-Lite hands this one on.
    grid, lines, heat_map = (_outer_width(panel) for panel in panels)
    columns = f"windowSize()[0] > {grid + lines + heat_map} ? 3 : windowSize()[0] > {max(grid, heat_map) + lines} ? 2 : 1"
    spec = _concat(tokens, weights_LNTS, panels, _selections(_telling_head(weights_LNTS), token=None))
    spec["params"].append({"name": "panel_columns", "expr": columns})
    spec["columns"] = {"signal": "panel_columns"}
    return spec


def attention_png(
    tokens: Sequence[str], weights_LNTS: np.ndarray, *, title: str, scale: float = 2, sinks: bool = False
) -> bytes:
    """A PNG, `scale` pixels to the point: all heads, and one telling head as lines and as a heat map.

    The head is one that looks at particular tokens some way back; where one of its tokens looks is highlighted.
    Raises ValueError as `attention_page` does.
    """
    import altair as alt
    import vl_convert

    _check(tokens, weights_LNTS, sinks)
    layer, head = _telling_head(weights_LNTS)
    token = _telling_token(weights_LNTS[layer, head])
    spec = _concat(tokens, weights_LNTS, _panels(tokens, weights_LNTS), _selections((layer, head), token))
    spec["columns"] = 3
    spec["concat"][0]["title"] = "All heads"
    spec["background"] = "white"
    spec["config"] = CHART_CONFIG | {"font": _FONTS_CJK if any(map(_wide, "".join(tokens))) else _FONTS}
    spec["padding"] = 20
    spec["title"] = alt.TitleParams(
        title, subtitle=f"orange: where {visible(tokens[token])} (token {token}) looks in layer {layer}, head {head}"
    ).to_dict()
    return vl_convert.vegalite_to_png(spec, scale=scale)


def _check(tokens: Sequence[str], weights_LNTS: np.ndarray, sinks: bool) -> None:
    shape = weights_LNTS.shape
    if len(shape) != 4 or shape[2:] != (len(tokens), len(tokens)) or 0 in shape:
        raise ValueError(
            f"attention weights have shape {shape}; for {len(tokens)} tokens they must be "
            f"[layers, heads, {len(tokens)}, {len(tokens)}], none of them empty"
        )
    if np.isnan(weights_LNTS).any() or weights_LNTS.min() < 0:
        raise ValueError("attention weights must be numbers of at least 0; take them after the softmax")
    error_LNT = weights_LNTS.sum(-1, dtype=np.float64) - 1
    error_LNT = np.maximum(error_LNT, 0) if sinks else np.abs(error_LNT)
    if error_LNT.max() > _SUM_TOLERANCE:
        layer, head, query = np.unravel_index(error_LNT.argmax(), error_LNT.shape)
        raise ValueError(
            f"attention weights of layer {layer}, head {head}, query {query} sum to "
            f"{weights_LNTS[layer, head, query].sum():.4f}, not to 1; take them after the softmax and before dropout"
        )
    ahead_LNTS = np.triu(weights_LNTS, k=1)
    if ahead_LNTS.any():
        layer, head, query, key = np.unravel_index(ahead_LNTS.argmax(), shape)
        raise ValueError(
            f"attention weights of layer {layer}, head {head} let query {query} see the later key {key}; "
            "this view is for causal attention"
        )


def _telling_head(weights_LNTS: np.ndarray) -> tuple[int, int]:
    """The (layer, head) whose tokens look hardest at one token that is not the first, nor itself, nor the one before.

    Those three are what most heads look at in any text, so a head that looks elsewhere says more about this one.
    """
    score_LN = np.tril(weights_LNTS, k=-2)[..., 1:].max(-1, initial=0).mean(-1)
    layer, head = np.unravel_index(score_LN.argmax(), score_LN.shape)
    return int(layer), int(head)


def _telling_token(weights_TS: np.ndarray) -> int:
    """The query in the later half that looks hardest, several tokens back if it can."""
    length = len(weights_TS)
    for back in (3, 2, 1, 0):
        score_T = np.tril(weights_TS, k=-back)[:, 1:].max(-1, initial=0)
        if score_T[length // 2 :].any():
            return length // 2 + int(score_T[length // 2 :].argmax())
    return length - 1


def _concat(
    tokens: Sequence[str],
    weights_LNTS: np.ndarray,
    panels: Sequence[alt.LayerChart],
    selections: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    import altair as alt

    spec: dict[str, Any] = {
        "$schema": alt.SCHEMA_URL,
        "concat": [
            {key: part for key, part in panel.to_dict().items() if key not in ("$schema", "config")}
            for panel in panels
        ],
        "params": [{"name": "tokens", "value": [visible(token) for token in tokens]}, *selections],
        "resolve": {"scale": {"opacity": "independent", "strokeWidth": "independent"}},
        "spacing": 28,
        "config": CHART_CONFIG,
    }
    length = len(tokens)
    units_LNC = np.rint(weights_LNTS[..., *np.tril_indices(length)] * _UNITS).astype(int)
    spec["datasets"] = {
        "heads": [
            {"layer": layer, "head": head, "units": units_LNC[layer, head].tolist()}
            for layer, head in np.ndindex(*units_LNC.shape[:2])
        ],
        "pictures": [
            {"layer": layer, "head": head, "picture": _picture(weights_LNTS[layer, head])}
            for layer, head in np.ndindex(*units_LNC.shape[:2])
        ],
        "places": [{"query": place, "key": place} for place in range(length)],
    }
    return spec


def _panels(tokens: Sequence[str], weights_LNTS: np.ndarray) -> list[alt.LayerChart]:
    """The grid of heads, the lines and the heat map; `_selections` ties them."""
    import altair as alt

    length = len(tokens)
    step = max(8, min(24, 520 // length))
    # Only the picked head is unpacked from its row of thousandths: entry i of the lower triangle, row after row.
    cells = (
        alt.Chart(alt.NamedData("heads"))
        .transform_filter({"param": "pick"})
        .transform_flatten(["units"])
        .transform_window([alt.WindowFieldDef(op="row_number", **{"as": "number"})])
        .transform_calculate(query="floor((sqrt(8 * datum.number - 7) - 1) / 2)")
        .transform_calculate(
            key="datum.number - 1 - datum.query * (datum.query + 1) / 2",
            weight=f"datum.units / {_UNITS}",
            looks="tokens[datum.query] + '  (' + datum.query + ')'",
            at="tokens[datum.key] + '  (' + datum.key + ')'",
        )
    )
    return [_grid(*weights_LNTS.shape[:2]), _lines(cells, tokens, step), _heat_map(cells, tokens, step)]


def _selections(picked: tuple[int, int], token: int | None) -> list[dict[str, Any]]:
    """The three selections that tie the panels: a head, a query and a key, each fed by the views it names.

    Written as Vega-Lite has them: Altair 6 renames layers when it
    concatenates charts, so that a selection shared by two of them loses its views.
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
    if token is not None:
        look["value"] = [{"query": token}]
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


def _grid(layers: int, heads: int) -> alt.LayerChart:
    """All heads as small pictures, rows layers, columns heads; a click picks one."""
    import altair as alt

    size = max(28, min(64, 384 // heads))
    head = alt.X("head:O", title="head", axis=alt.Axis(labelAngle=0, domain=False, ticks=False))
    layer = alt.Y("layer:O", title="layer", axis=alt.Axis(domain=False, ticks=False))
    base = alt.Chart(alt.NamedData("pictures")).encode(
        x=head.scale(paddingInner=0.12, paddingOuter=0.06), y=layer.scale(paddingInner=0.12, paddingOuter=0.06)
    )
    pictures = base.mark_image(width=size * 0.88, height=size * 0.88).encode(url="picture:N")
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
    return alt.layer(pictures, frames).properties(
        width=heads * size, height=layers * size, title=alt.TitleParams("All heads", subtitle="click one to pick it")
    )


def _lines(cells: alt.Chart, tokens: Sequence[str], step: float) -> alt.LayerChart:
    """The tokens twice, queries left and keys right, and a line for each weight that can be seen."""
    import altair as alt

    width, length, label = 280, len(tokens), _label_width(tokens, step)
    left, right, font = label + 6, width - label - 6, _font_size(step)
    scale = alt.Scale(domain=[-0.5, length - 0.5], reverse=True, nice=False, zero=False)
    at_query = alt.Y("query:Q", scale=scale, axis=None)
    at_key = alt.Y("key:Q", scale=scale, axis=None)
    chosen = {"and": [{"param": "look"}, {"param": "seen"}]}
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
    some = lines.transform_filter(hovered).transform_filter(chosen).encode(stroke=alt.value(ORANGE))
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
    places = alt.Chart(alt.NamedData("places"))
    name = places.transform_calculate(name="tokens[datum.query]")
    queries = name.mark_text(align="right", fontSize=font, limit=label).encode(
        x=alt.value(left - 4), y=at_query, text="name:N",
        opacity=_either({"param": "look"}, 1, 0.35),
    )
    keys = name.mark_text(align="left", fontSize=font, limit=label).encode(
        x=alt.value(right + 4), y=at_key, text="name:N",
        opacity=_either({"param": "seen"}, 1, 0.35),
    )
    band = places.mark_bar(height=step, opacity=0).encode(y=at_query)
    hit_queries = band.encode(x=alt.value(0), x2=alt.value(width * 0.6)).properties(name="left")
    hit_keys = band.encode(x=alt.value(width * 0.6), x2=alt.value(width)).properties(name="right")
    return alt.layer(every, some, shade, queries, keys, hit_queries, hit_keys).properties(
        width=width,
        height=length * step,
        title=alt.TitleParams("Where each token looks", subtitle="left: who looks; right: at whom"),
    )


def _heat_map(cells: alt.Chart, tokens: Sequence[str], step: float) -> alt.LayerChart:
    """Queries down, keys across; the row of a hovered query and the column of a hovered key are framed."""
    import altair as alt

    length, side = len(tokens), len(tokens) * step
    axis = alt.Axis(
        labelExpr="tokens[datum.value]", labelFontSize=_font_size(step), labelLimit=_label_width(tokens, step),
        labelOverlap=False, ticks=False, domain=False, labelPadding=4,
    )  # fmt: skip
    scale = alt.Scale(domain=list(range(length)), paddingInner=0, paddingOuter=0)
    key = alt.X("key:O", scale=scale, title="key: at whom", axis=axis)
    query = alt.Y("query:O", scale=scale, title="query: who looks", axis=axis)
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
    frame = alt.Chart(alt.NamedData("places")).mark_rect(
        fill=None, stroke=ORANGE, strokeWidth=2, cornerRadius=2, tooltip=None
    )
    row = frame.transform_filter({"param": "look", "empty": False}).encode(
        x=alt.value(0), x2=alt.value(side), y=query
    )
    column = frame.transform_filter({"param": "seen", "empty": False}).encode(
        x=key, y=alt.value(0), y2=alt.value(side)
    )
    named = "'Layer ' + pick.layer[0] + ', head ' + pick.head[0]"
    return alt.layer(heat, row, column).properties(
        width=side,
        height=side,
        title=alt.TitleParams(alt.expr(named), subtitle="each row sums to 1"),
    )


def _either(test: str | dict[str, Any], then: object, otherwise: object) -> Any:
    """An encoding that is `then` where `test`, a predicate or an expression, holds."""
    return {"condition": {"test": test, "value": then}, "value": otherwise}


def _font_size(step: float) -> float:
    return min(12, max(8, step * 0.85))


def _wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF"


def _label_width(tokens: Sequence[str], step: float) -> int:
    """Points that the longest token needs, within reason; a Chinese character is about twice as wide as a Latin one."""
    wide = max(sum(1.0 if _wide(character) else 0.62 for character in visible(token)) for token in tokens)
    return min(90, math.ceil(wide * _font_size(step)) + 4)


def _outer_width(panel: alt.LayerChart) -> int:
    """About how wide a panel is with its labels and its share of the margins, in CSS pixels."""
    return int(panel.to_dict(validate=False)["width"]) + 80


def _picture(weights_TS: np.ndarray) -> str:
    """One head as a small PNG in a data URL: blue whose opacity grows with the weight's square root.

    A picture for each head keeps thirty heads of thousands of cells quick to draw, which as marks they are not.
    """
    length = len(weights_TS)
    pool = -(-length // 96)  # each pixel shows the largest of pool x pool weights, so that no bright cell is lost
    padded = -length % pool
    pooled_TS = np.pad(weights_TS, ((0, padded), (0, padded)))
    side = len(pooled_TS) // pool
    pooled_TS = pooled_TS.reshape(side, pool, side, pool).max((1, 3))
    level_TS = np.tril(1 + np.rint(14 * np.sqrt(np.clip(pooled_TS, 0, 1)))).astype(np.uint8)
    level_TS = level_TS.repeat(-(-96 // side), 0).repeat(-(-96 // side), 1)  # nearest neighbour: browsers would blur
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
