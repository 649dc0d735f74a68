"""Where a network looks, as a page to explore and as a picture.

Shapes: L layers, N heads, T query length, S key length.
Weights are softmax(QK^T/sqrt(d)) ("Attention Is All You Need", section 3.2.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from launch.views.attention_panels import Seen, is_wide, linked_panels, visible
from launch.views.page import CHART_CONFIG, embed, escape, page

_SUM_TOLERANCE = 1e-3

# For pictures made without a browser: vl-convert takes the first family that is installed for the whole text.
_FONTS = "DejaVu Sans, sans-serif"
_FONTS_CJK = "Noto Sans CJK SC, Noto Sans SC, PingFang SC, Microsoft YaHei, sans-serif"

_MEANING = (
    "Each row of the heat map is softmax(QKᵀ/√d) for one token: the token’s query is compared with the key of {keys}, "
    "and the softmax turns the comparisons into shares that sum to 1. The head then returns the average of the value "
    "vectors, weighted by these shares. {order}Dark cells and thick lines are large shares; the shading grows with the "
    "square root of the weight, so that small ones can be seen."
)
_CAUSAL = {
    "keys": "itself and of every token before it",
    "order": "A causal model cannot look ahead, so nothing stands above the diagonal. ",
}
_BOTH_WAYS = {"keys": "every token, before and behind it", "order": ""}
_CAVEAT = (
    "Attention alone is not an explanation: it shows where a head reads, not what it reads there nor whether the "
    "prediction depends on it. For that, change the head and see what the prediction does."
)


def attention_page(
    tokens: Sequence[str],
    weights_LNTS: np.ndarray,
    *,
    title: str,
    command: str,
    structure_svg: str,
    sinks: bool = False,
    causal: bool = True,
) -> str:
    """A self-contained HTML page on which hovering a token shows where each head looks.

    `tokens` are the T pieces of the text; `weights_LNTS` are float attention weights [L, N, T, T]; `title` names the
    model and `command` is what made the page (both text); `structure_svg` is an SVG drawing, put in as it is. With
    `sinks` (config.model.attention_sinks) rows may sum to less than 1: the rest went to the head's sink. With `causal`
    False tokens may look ahead.
    Raises ValueError if the weights are not those of such attention over `tokens`.
    """
    layers, heads = weights_LNTS.shape[:2] if weights_LNTS.ndim == 4 else (0, 0)
    chart = embed("attention", attention_chart(tokens, weights_LNTS, sinks=sinks, causal=causal))
    body = f"""<h1>{escape(title)}</h1>
<p class="quiet">{layers} layers × {heads} heads over {len(tokens)} tokens. Click a small picture to pick its head;
hover a token, or a cell of the heat map, to see where that token looks; hover on the right-hand side to see who looks
there.</p>
<pre>{escape("".join(tokens))}</pre>
{chart}
{attention_caption(sinks, causal)}
<p class="quiet">Made by <code>{escape(command)}</code></p>
<h2>The network</h2>
<div class="drawing">{structure_svg}</div>"""
    return page(title, body)


def attention_caption(sinks: bool = False, causal: bool = True) -> str:
    """HTML that says in plain words what is seen in the attention charts, and what is not."""
    meaning = _MEANING.format(**(_CAUSAL if causal else _BOTH_WAYS))
    sink = " In this model each head also has a sink, which takes a share that is not drawn." if sinks else ""
    return f'<p>{escape(meaning + sink)}</p>\n<p class="quiet">{escape(_CAVEAT)}</p>'


def attention_chart(
    tokens: Sequence[str], weights_LNTS: np.ndarray, *, sinks: bool = False, causal: bool = True
) -> dict[str, Any]:
    """The interactive chart as a Vega-Lite specification for `launch.views.page.embed`; see `attention_page`."""
    seen = Seen(tokens, tokens, weights_LNTS, causal)
    check(seen, sinks)
    return linked_chart(seen, _telling_head(weights_LNTS))


def linked_chart(seen: Seen, picked: tuple[int, int]) -> dict[str, Any]:
    """The three panels for a page, with the (layer, head) `picked` at first."""
    spec = linked_panels(seen, picked)
    # Side by side where the window has room, else one below the other. Vega lays out by a signal, for which
    # neither Altair nor Vega-Lite has a word, but Vega-Lite hands this one on.
    grid, lines, heat_map = (panel["width"] + 80 for panel in spec["concat"])  # with labels and a share of the margins
    two, three = max(grid, heat_map) + lines, grid + lines + heat_map
    columns = f"windowSize()[0] > {three} ? 3 : windowSize()[0] > {two} ? 2 : 1"
    spec["params"].append({"name": "panel_columns", "expr": columns})
    spec["columns"] = {"signal": "panel_columns"}
    return spec


def attention_png(
    tokens: Sequence[str],
    weights_LNTS: np.ndarray,
    *,
    title: str,
    scale: float = 2,
    sinks: bool = False,
    causal: bool = True,
) -> bytes:
    """A PNG, `scale` pixels to the point: all heads, and one telling head as lines and as a heat map.

    The head is one that looks at particular tokens some way off; where one of its tokens looks is highlighted.
    Raises ValueError as `attention_page` does.
    """
    seen = Seen(tokens, tokens, weights_LNTS, causal)
    check(seen, sinks)
    layer, head = _telling_head(weights_LNTS)
    token = _telling_token(tokens, weights_LNTS[layer, head])
    subtitle = f"orange: where {visible(tokens[token])} (token {token}) looks in layer {layer}, head {head}"
    return linked_png(seen, (layer, head), token, title=title, subtitle=subtitle, scale=scale)


def linked_png(seen: Seen, picked: tuple[int, int], looking: int, *, title: str, subtitle: str, scale: float) -> bytes:
    """The three panels as a PNG, with the (layer, head) `picked` and the query `looking` highlighted."""
    import altair as alt
    import vl_convert

    spec = linked_panels(seen, picked, looking)
    spec["columns"] = 3
    spec["concat"][0]["title"] = "All heads"
    spec["background"] = "white"
    wide = any(map(is_wide, "".join([*seen.queries, *seen.keys])))
    spec["config"] = CHART_CONFIG | {"font": _FONTS_CJK if wide else _FONTS}
    spec["padding"] = 20
    spec["title"] = alt.TitleParams(title, subtitle=subtitle).to_dict()
    return vl_convert.vegalite_to_png(spec, scale=scale)


def check(seen: Seen, sinks: bool = False) -> None:
    """Raises ValueError unless these are weights of attention between the tokens; `sinks` as in `attention_page`."""
    weights_LNTS, shape, lengths = seen.weights_LNTS, seen.weights_LNTS.shape, (len(seen.queries), len(seen.keys))
    if len(shape) != 4 or shape[2:] != lengths or 0 in shape:
        raise ValueError(
            f"attention weights have shape {shape}; for {lengths[0]} tokens they must be "
            f"[layers, heads, {lengths[0]}, {lengths[1]}], none of them empty"
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
    if seen.causal and ahead_LNTS.any():
        layer, head, query, key = np.unravel_index(ahead_LNTS.argmax(), shape)
        raise ValueError(
            f"attention weights of layer {layer}, head {head} let query {query} see the later key {key}; "
            "this view is for causal attention"
        )


def _telling_head(weights_LNTS: np.ndarray) -> tuple[int, int]:
    """The (layer, head) whose tokens look hardest at one token that is not the first, nor itself, nor next to it.

    Those are what most heads look at in any text, so a head that looks elsewhere says more about this one.
    """
    score_LN = _far(weights_LNTS, 2)[..., 1:].max(-1, initial=0).mean(-1)
    layer, head = np.unravel_index(score_LN.argmax(), score_LN.shape)
    return int(layer), int(head)


def _telling_token(tokens: Sequence[str], weights_TS: np.ndarray) -> int:
    """The query in the later half that looks hardest a few tokens off, a word rather than a sign."""
    score_T = _far(weights_TS, 3)[:, 1:].max(-1, initial=0)
    score_T += [any(map(str.isalnum, token)) for token in tokens]
    half = len(tokens) // 2
    return half + int(score_T[half:].argmax())


def _far(weights_XTS: np.ndarray, least: int) -> np.ndarray:
    """The weights between tokens that are at least so far apart, and 0 between others."""
    return np.tril(weights_XTS, -least) + np.triu(weights_XTS, least)
