"""Where a network looks, as a page to explore and as a picture.

Shapes: L layers, N heads, T query length, S key length.
Weights are softmax(QK^T/sqrt(d)) ("Attention Is All You Need", section 3.2.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from launch.views.attention_panels import Seen, linked_panels, unpacking, with_heads
from launch.views.knocked import Knocked
from launch.views.packed import packed
from launch.views.page import embed, escape
from launch.views.pieces import visible
from launch.views.view import View, rounded, token_by_token

_SUM_TOLERANCE = 1e-3
_WIDE = 600  # Points.

_MEANING = (
    "Each row of the heat map is softmax(QKᵀ/√d) for one token: the token’s query is compared with the key of {keys}, "
    "and the softmax turns the comparisons into shares that sum to 1. The head then returns the average of the value "
    "vectors, weighted by these shares. {order}Dark cells and thick lines are large shares; the shading grows with the "
    "square root of the weight, so that small ones can be seen."
)
_CAUSAL = {
    "keys": "itself and of every token before it",
    "order": "A causal model cannot look ahead: nothing stands above the diagonal, and the row of a word is the same "
    "whatever follows, so what “it” reads cannot depend on the words behind “it”. ",
}
_BOTH_WAYS = {"keys": "every token, before and behind it", "order": ""}
_CAVEAT = (
    "Attention alone is not an explanation: it shows where a head reads, not what it reads there nor whether the "
    "prediction depends on it. For that, change the head and see what the prediction does."
)


@dataclass(frozen=True)
class HeadsView(View):
    """All heads, and one at a time as lines and as a heat map, with what knocking it out does."""

    seen: Seen
    knocked: Knocked | None = None  # None for a network without a next token
    looking: int | None = None  # the piece of the text that looks; by default a telling one

    name: ClassVar[str] = "heads"

    def chart(self) -> dict[str, Any]:
        """All heads, and one telling head with one of its tokens highlighted.

        Raises ValueError if the weights are not those of such attention over the tokens.
        """
        check(self.seen)
        seen, picked, token = self.shown()
        spec = linked_panels(seen, picked, token)
        if self.knocked is not None:
            spec = self.knocked.beside(spec, seen.names)
        return in_a_row(with_heads(spec, seen, picked))

    def shown(self) -> tuple[Seen, tuple[int, int], int]:
        """What a still picture shows: between whole characters, a (layer, head), and the piece that looks."""
        seen = self.seen.in_pieces()
        picked = telling_head(seen.weights_LNTS, self.looking)
        return seen, picked, telling_token(seen, picked) if self.looking is None else self.looking

    def subject(self) -> str:
        """Which head the still picture shows, and which token looks."""
        seen, (layer, head), token = self.shown()
        return (
            f"orange: where {visible(seen.queries.tokens[token])} (token {token}) looks in layer {layer}, head {head}"
        )

    def hint(self) -> str:
        """What there is on the page, and how to see it."""
        layers, heads = self.seen.weights_LNTS.shape[:2]
        asked = "" if self.looking is None else f"{self.subject()}. "
        return asked + (
            f"{layers} layers × {heads} heads over {len(self.seen.queries.tokens)} tokens. Click a small picture to "
            "pick its head; hover a token, or a cell of the heat map, to see where that token looks; hover on the "
            "right-hand side to see who looks there."
        )

    def embedded(self) -> str:
        """The panels, in whole characters, and by token where that differs."""
        if self.looking is None:
            return attention_charts("attention", self.seen, self.knocked)
        _, picked, token = self.shown()
        return linked_charts("attention", self.seen, picked, self.knocked, token)

    def told(self) -> list[str]:
        """What is seen in the panels, and what is not."""
        return attention_told(self.seen)

    def numbers(self) -> dict[str, Any]:
        """The weights by layer, head, query and key, and what each head does to the prediction."""
        numbers = {"tokens": list(self.seen.queries.tokens), "weights": rounded(self.seen.weights_LNTS)}
        if self.looking is not None:
            _, (layer, head), piece = self.shown()
            numbers |= {"shown": {"layer": layer, "head": head, "token": self.seen.queries.last(piece)}}
        return numbers if self.knocked is None else numbers | {"knocked_out": self.knocked.numbers()}


def attention_told(seen: Seen) -> list[str]:
    """What is seen in the attention charts in plain words, and what is not."""
    meaning = _MEANING.format(**(_CAUSAL if seen.causal else _BOTH_WAYS))
    sink = " In this model each head also has a sink, which takes a share that is not drawn." if seen.sinks else ""
    return [meaning + sink, _CAVEAT]


def attention_charts(name: str, seen: Seen, knocked: Knocked | None = None) -> str:
    """The interactive panels as HTML, with a telling head picked.

    Raises ValueError if the weights are not those of such attention over the tokens.
    """
    check(seen)
    return linked_charts(name, seen, telling_head(seen.weights_LNTS), knocked)


def linked_charts(
    name: str, seen: Seen, picked: tuple[int, int], knocked: Knocked | None = None, looking: int | None = None
) -> str:
    """The interactive panels as HTML: of whole characters, and of tokens if these differ; with the weights.

    `looking` is the piece of the queries that is highlighted from the start.
    """
    id = f"{name}-weights"
    weights = f'<div hidden id="{escape(id)}">{packed(seen.weights_LNTS, seen.causal)}</div>'
    spec = linked_page(seen.in_pieces(), picked, knocked, looking)
    charts = embed(name, spec | {"usermeta": unpacking(seen, id, by_token=not seen.split)})
    if seen.split:
        token = None if looking is None else seen.queries.last(looking)
        by_token = linked_page(seen, picked, knocked, token) | {"usermeta": unpacking(seen, id, by_token=True)}
        charts += token_by_token(name, by_token)
    return weights + charts


def linked_page(
    seen: Seen, picked: tuple[int, int], knocked: Knocked | None, looking: int | None = None
) -> dict[str, Any]:
    """The panels for a page, side by side where the window has room, else one below the other."""
    spec = linked_panels(seen, picked, looking)
    if knocked is not None:
        spec = knocked.beside(spec, seen.names)
    # Vega lays out by a signal, for which neither Altair nor Vega-Lite has a word, but Vega-Lite hands this one on.
    widths = [panel["width"] + 80 for panel in spec["concat"]]  # with labels and a share of the margins
    columns = "1"
    for count in range(2, len(widths) + 1):
        needed = max(sum(widths[first : first + count]) for first in range(0, len(widths), count))
        columns = f"windowSize()[0] > {needed} ? {count} : {columns}"
    return spec | {
        "params": [*spec["params"], {"name": "panel_columns", "expr": columns}],
        "columns": {"signal": "panel_columns"},
    }


def in_a_row(spec: dict[str, Any]) -> dict[str, Any]:
    """The panels for a still picture: side by side, below the small pictures if these are of a deep network."""
    grid, *others = spec["concat"]
    grid |= {"title": "All heads"}
    if grid["width"] > _WIDE:
        below = {"concat": others, "columns": len(others), "spacing": 28, "resolve": spec["resolve"]}
        return {name: part for name, part in spec.items() if name != "concat"} | {"vconcat": [grid, below]}
    return spec | {"columns": len(others) + 1, "concat": [grid, *others]}


def check(seen: Seen) -> None:
    """Raises ValueError unless these are weights of attention between the tokens."""
    weights_LNTS, shape = seen.weights_LNTS, seen.weights_LNTS.shape
    lengths = (len(seen.queries.tokens), len(seen.keys.tokens))
    if len(shape) != 4 or shape[2:] != lengths or 0 in shape:
        raise ValueError(
            f"attention weights have shape {shape}; for {lengths[0]} tokens they must be "
            f"[layers, heads, {lengths[0]}, {lengths[1]}], none of them empty"
        )
    if np.isnan(weights_LNTS).any() or weights_LNTS.min() < 0:
        raise ValueError("attention weights must be numbers of at least 0; take them after the softmax")
    error_LNT = weights_LNTS.sum(-1, dtype=np.float64) - 1
    error_LNT = np.maximum(error_LNT, 0) if seen.sinks else np.abs(error_LNT)
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


def telling_head(weights_LNTS: np.ndarray, looking: int | None = None) -> tuple[int, int]:
    """The (layer, head) whose tokens look hardest at one token that is not the first, nor itself, nor next to it.

    With `looking`, in which that one does. The others are what most heads look at in any text, so a head that looks
    elsewhere says more about this one.
    """
    score_LNT = _far(weights_LNTS, 2)[..., 1:].max(-1, initial=0)
    score_LN = score_LNT.mean(-1) if looking is None else score_LNT[..., looking]
    layer, head = np.unravel_index(score_LN.argmax(), score_LN.shape)
    return int(layer), int(head)


def telling_token(seen: Seen, picked: tuple[int, int]) -> int:
    """The query in the later half that looks hardest a few tokens off, a word rather than a sign."""
    score_T = _far(seen.weights_LNTS[picked], 3)[:, 1:].max(-1, initial=0)
    score_T += [any(map(str.isalnum, token)) for token in seen.queries.tokens]
    half = len(score_T) // 2
    return half + int(score_T[half:].argmax())


def _far(weights_XTS: np.ndarray, least: int) -> np.ndarray:
    """The weights between tokens that are at least so far apart, and 0 between others."""
    return np.tril(weights_XTS, -least) + np.triu(weights_XTS, least)
