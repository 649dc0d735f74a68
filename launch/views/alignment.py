"""Which words of a sentence a translator reads to write each word of the translation, as a page and as a picture.

Shapes: L layers, N heads, S tokens of the source, T tokens of the translation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from launch.views.attention import attention_charts, check, in_a_row, linked_charts
from launch.views.attention_panels import Seen, linked_panels, with_heads
from launch.views.knocked import Knocked
from launch.views.pieces import visible
from launch.views.view import View, rounded

_MEANING = (
    "Each row of the heat map belongs to a token of the translation; it shows from which tokens of the source the "
    "network read when it wrote this token, as shares that sum to 1 (Bahdanau et al. 2015, section 5.2.1; here by the "
    "attention between decoder and encoder). Where both languages have the same order, dark cells lie on the diagonal. "
    "“mean” is the average over the heads of a layer. The shading grows with the square root of the weight."
)
_CAVEAT = (
    "The network reads vectors that its encoder made, and in each of them the whole sentence may have left its trace: "
    "a token that is looked at need not be the word that is translated, and a last token that all look at is often a "
    "place to look at nothing."
)
ALIGNMENT_TOLD = (_MEANING, _CAVEAT)


@dataclass(frozen=True)
class Translation:
    """A translation and what was looked at to write it."""

    alignment: Seen  # from the written tokens, which end with the end of the text, to those of the source
    read: Sequence[str]  # the tokens that the decoder read: the start, then the translation
    ids: tuple[Sequence[int], Sequence[int]]  # the source and what was read, as numbers
    encoder: Seen | None = None  # from the source to itself; None where a network has no such layers
    decoder: Seen | None = None  # from what was read to itself
    looking: int | None = None  # which piece of what was written is highlighted; by default a telling one

    def with_mean(self) -> Seen:
        """The alignment, with the mean over the heads as one more head if there are several."""
        seen = self.alignment
        check(seen)
        weights_LNTS, several = seen.weights_LNTS, seen.weights_LNTS.shape[1] > 1
        if several:
            weights_LNTS = np.concatenate([weights_LNTS, weights_LNTS.mean(1, keepdims=True)], axis=1)
        who = ("translation: what is written", "source: what is read")
        return replace(seen, weights_LNTS=weights_LNTS, mean=several, who=who)

    def shown(self) -> tuple[Seen, tuple[int, int], int]:
        """What a still picture shows: between whole characters, a (layer, head), and the piece that is highlighted."""
        seen = self.with_mean().in_pieces()
        picked = (_telling_layer(seen), seen.weights_LNTS.shape[1] - 1)
        token = self.looking
        if token is None:
            token = _telling_token(seen.queries.tokens, seen.weights_LNTS[picked])
        return seen, picked, token


@dataclass(frozen=True)
class AlignmentView(View):
    """The alignment; on the page, also who looks at whom within the source and within the translation."""

    translation: Translation
    knocked: Knocked | None = None  # at the token of the still picture; None where no head can be silenced

    name: ClassVar[str] = "alignment"

    def chart(self) -> dict[str, Any]:
        """All heads, and the mean of one layer as lines and as a heat map.

        Raises ValueError if the weights are not those of attention between the tokens.
        """
        seen, picked, token = self.translation.shown()
        spec = linked_panels(seen, picked, token)
        if self.knocked is not None:
            spec = self.knocked.beside(spec, seen.names)
        return in_a_row(with_heads(spec, seen, picked))

    def subject(self) -> str:
        """Which layer the still picture shows, and which token."""
        seen, (layer, _), token = self.translation.shown()
        heads = "the mean of all heads" if seen.mean else "the only head"
        word = visible(seen.queries.tokens[token])
        return f"orange: what {word} (token {token}) was written from, by {heads} of layer {layer}"

    def hint(self) -> str:
        """What was written."""
        return f"written: {''.join(self.translation.alignment.queries.texts)}"

    def embedded(self) -> str:
        """The alignment, then the attention within either text."""
        seen = self.translation
        charts = "<h2>Alignment: what each word was written from</h2>\n"
        charts += alignment_charts("alignment", seen, self.knocked)
        if seen.encoder is not None:
            charts += f"<h2>The source reads itself</h2>\n{attention_charts('encoder', seen.encoder)}"
        if seen.decoder is not None:
            charts += f"<h2>The translation reads what it has so far</h2>\n{attention_charts('decoder', seen.decoder)}"
        return charts

    def told(self) -> list[str]:
        """What is seen in an alignment in plain words, and what is not."""
        return list(ALIGNMENT_TOLD)

    def numbers(self) -> dict[str, Any]:
        """The tokens, and the weights by layer, head, query and key."""
        seen = self.translation
        named = {"alignment": seen.alignment, "encoder": seen.encoder, "decoder": seen.decoder}
        weights = {name: rounded(part.weights_LNTS) for name, part in named.items() if part is not None}
        tokens = {"source": seen.alignment.keys.tokens, "read": seen.read, "written": seen.alignment.queries.tokens}
        return {name: list(of) for name, of in tokens.items()} | weights

    def letters(self) -> str:
        """Both texts."""
        return super().letters() + self.hint()


def alignment_charts(name: str, translation: Translation, knocked: Knocked | None = None) -> str:
    """The interactive panels as HTML.

    Raises ValueError if the weights are not those of attention between the tokens.
    """
    seen = translation.with_mean()
    picked = (_telling_layer(seen), seen.weights_LNTS.shape[1] - 1)
    return linked_charts(name, seen, picked, knocked, translation.looking)


def _telling_layer(seen: Seen) -> int:
    """The layer whose heads agree best, token by token, on one token of the source other than its end."""
    return int(seen.weights_LNTS[:, -1, :, :-1].max(-1, initial=0).mean(-1).argmax())


def _telling_token(tokens: Sequence[str], weights_TS: np.ndarray) -> int:
    """The token in the later half that is written from the clearest place, a word rather than a sign."""
    score_T = weights_TS[:, :-1].max(-1, initial=0)
    score_T = score_T + np.array([any(map(str.isalnum, token)) for token in tokens], np.float32)
    half = len(tokens) // 2
    return half + int(score_T[half:].argmax())
