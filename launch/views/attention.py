"""Where a network looks, as a page to explore and as a picture.

Shapes: L layers, N heads, T query length, S key length (T and S are the same tokens here).
Weights are softmax(QK^T/sqrt(d)) ("Attention Is All You Need", section 3.2.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from launch.views.attention_panels import is_wide, linked_panels, visible
from launch.views.page import CHART_CONFIG, embed, escape, page

_SUM_TOLERANCE = 1e-3

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
    spec = linked_panels(tokens, weights_LNTS, picked=_telling_head(weights_LNTS))
    # Side by side where the window has room, else one below the other. Vega lays out by a signal, for which
    # neither Altair nor Vega-Lite has a word, but Vega-Lite hands this one on.
    grid, lines, heat_map = (panel["width"] + 80 for panel in spec["concat"])  # with labels and a share of the margins
    two, three = max(grid, heat_map) + lines, grid + lines + heat_map
    columns = f"windowSize()[0] > {three} ? 3 : windowSize()[0] > {two} ? 2 : 1"
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
    token = _telling_token(tokens, weights_LNTS[layer, head])
    spec = linked_panels(tokens, weights_LNTS, picked=(layer, head), looking=token)
    spec["columns"] = 3
    spec["concat"][0]["title"] = "All heads"
    spec["background"] = "white"
    spec["config"] = CHART_CONFIG | {"font": _FONTS_CJK if any(map(is_wide, "".join(tokens))) else _FONTS}
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


def _telling_token(tokens: Sequence[str], weights_TS: np.ndarray) -> int:
    """The query in the later half that looks hardest a few tokens back, a word rather than a sign."""
    score_T = np.tril(weights_TS, k=-3)[:, 1:].max(-1, initial=0)
    score_T += [any(map(str.isalnum, token)) for token in tokens]
    half = len(tokens) // 2
    return half + int(score_T[half:].argmax())
