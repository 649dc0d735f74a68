"""Which words of a sentence a translator reads to write each word of the translation, as a page and as a picture.

Shapes: L layers, N heads, S tokens of the source, T tokens of the translation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from launch.views.attention import check, linked_chart, linked_png
from launch.views.attention_panels import Seen, visible
from launch.views.page import embed, escape, page

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


@dataclass(frozen=True)
class TranslationView:
    """A translation and what was looked at to write it; arrays are float32, None where a network has no such layers."""

    source: Sequence[str]  # the S tokens of the sentence
    read: Sequence[str]  # the T tokens that the decoder read: the start, then the translation
    written: Sequence[str]  # the T tokens that it wrote: the translation, then its end
    alignment_LNTS: np.ndarray
    encoder_LNSS: np.ndarray | None = None
    decoder_LNTT: np.ndarray | None = None


def alignment_page(view: TranslationView, *, title: str, command: str, structure_svg: str, sinks: bool = False) -> str:
    """A self-contained HTML page: the alignment, then who looks at whom within the source and within the translation.

    `title`, `command` and `structure_svg` are as in `launch.views.attention.attention_page`, and so is `sinks`.
    Raises ValueError if the weights are not those of attention between the tokens.
    """
    body = f"""<h1>{escape(title)}</h1>
<pre>{escape("".join(view.source))}</pre>
<pre>{escape("".join(view.written))}</pre>
<h2>Alignment: what each word was written from</h2>
{embed("alignment", alignment_chart(view, sinks=sinks))}
{alignment_caption()}
{_self_attention("encoder", "The source reads itself, in both directions", view.source, view.encoder_LNSS, sinks)}
{_self_attention("decoder", "The translation reads what it has so far", view.read, view.decoder_LNTT, sinks)}
<p class="quiet">Made by <code>{escape(command)}</code></p>
<h2>The network</h2>
<div class="drawing">{structure_svg}</div>"""
    return page(title, body)


def alignment_caption() -> str:
    """HTML that says in plain words what is seen in an alignment, and what is not."""
    return f'<p>{escape(_MEANING)}</p>\n<p class="quiet">{escape(_CAVEAT)}</p>'


def alignment_chart(view: TranslationView, *, sinks: bool = False) -> dict[str, Any]:
    """The interactive chart as a Vega-Lite specification for `launch.views.page.embed`; see `alignment_page`."""
    seen = _seen(view, sinks)
    return linked_chart(seen, (_telling_layer(seen), seen.weights_LNTS.shape[1] - 1))


def alignment_png(view: TranslationView, *, title: str, scale: float = 2, sinks: bool = False) -> bytes:
    """A PNG, `scale` pixels to the point: all heads, and the mean of one layer as lines and as a heat map.

    Raises ValueError as `alignment_page` does.
    """
    seen = _seen(view, sinks)
    layer, mean = _telling_layer(seen), seen.weights_LNTS.shape[1] - 1
    token = _telling_token(view.written, seen.weights_LNTS[layer, mean])
    word = visible(view.written[token])
    heads = "the mean of all heads" if seen.mean else "the only head"
    subtitle = f"orange: what {word} (token {token}) was written from, by {heads} of layer {layer}"
    return linked_png(seen, (layer, mean), token, title=title, subtitle=subtitle, scale=scale)


def _self_attention(name: str, title: str, tokens: Sequence[str], weights_LNTT: np.ndarray | None, sinks: bool) -> str:
    from launch.views.attention import attention_chart

    if weights_LNTT is None:
        return ""
    chart = attention_chart(tokens, weights_LNTT, sinks=sinks, causal=name == "decoder")
    return f"<h2>{escape(title)}</h2>\n{embed(name, chart)}"


def _seen(view: TranslationView, sinks: bool) -> Seen:
    """The alignment, with the mean over the heads as one more head if there are several."""
    weights_LNTS, several = view.alignment_LNTS, view.alignment_LNTS.shape[1] > 1
    check(Seen(view.written, view.source, weights_LNTS, causal=False), sinks)
    if several:
        weights_LNTS = np.concatenate([weights_LNTS, weights_LNTS.mean(1, keepdims=True)], axis=1)
    who = ("translation: what is written", "source: what is read")
    return Seen(view.written, view.source, weights_LNTS, causal=False, mean=several, who=who)


def _telling_layer(seen: Seen) -> int:
    """The layer whose heads agree best, token by token, on one token of the source other than its end."""
    return int(seen.weights_LNTS[:, -1, :, :-1].max(-1, initial=0).mean(-1).argmax())


def _telling_token(tokens: Sequence[str], weights_TS: np.ndarray) -> int:
    """The token in the later half that is written from the clearest place, a word rather than a sign."""
    score_T = weights_TS[:, :-1].max(-1, initial=0)
    score_T = score_T + np.array([any(map(str.isalnum, token)) for token in tokens], np.float32)
    half = len(tokens) // 2
    return half + int(score_T[half:].argmax())
