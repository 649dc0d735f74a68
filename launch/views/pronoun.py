"""What *it* stands for, drawn: two sentences that differ in their last word, as two networks read them.

Lines go from *it* to the words that it draws from, by attention rollout; bars show what it is taken to stand for; a
table shows where in the network the last word decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from launch.views.page import BLUE, ORANGE, escape, page
from launch.views.palette import paletted

_INK, _QUIET, _GROUND, _PANEL, _EDGE, _GREY = "#1c2024", "#5f6770", "#fbfcfd", "#ffffff", "#dfe3e8", "#98a1ab"
_TINTS = {BLUE: "#dce9fb", ORANGE: "#fde4c8", _GREY: "#eceef1"}
# Words stand under lines and over cells, so their places must be known without measuring: all letters are as wide.
_MONO, _LETTER, _SIZE = "DejaVu Sans Mono, Menlo, Consolas, monospace", 0.602, 18
_WIDTH, _LEFT, _ARCS = 1120, 40, 80
_RIGHT = 838  # Where the bars begin; their names stand before them.
_SENTENCE = _ARCS + 58  # From one sentence to the next.
_ROW = 26  # Of the table.
_THICKEST = 26.0  # Of a line that stands for a share of 1.

_CAVEAT = (
    "Lines are attention rollout (Abnar & Zuidema 2020): heads averaged, the residual connection counted as half, the "
    "layers multiplied. It tells what could have been read from where, not what was done with it: that is what the "
    "table of patches is for, which changes one vector and looks at the prediction. A single head need not point at "
    "the noun."
)
_CAUSAL = (
    "A causal network reads from left to right. When it reads “it”, the last word has not come yet, so what it "
    "computes there is the same in both sentences, bit for bit, and no training can make it better than a guess. In a "
    "causal language model, only the words behind “it” can tell."
)


@dataclass(frozen=True)
class SentenceView:
    """A sentence to be drawn."""

    tokens: Sequence[str]  # with the space before them
    at: int  # which of them is *it*
    shares: Sequence[float]  # what stands at *it* comes from where: one number a token, 1 in all
    probability: Mapping[str, float]  # of each of the two nouns


@dataclass(frozen=True)
class NetworkView:
    """Both sentences as one network reads them."""

    name: str
    note: str
    sentences: Sequence[SentenceView]


def pronoun_svg(
    title: str, subtitle: str, networks: Sequence[NetworkView], patched_LT: np.ndarray, other_word: str
) -> str:
    """The picture, on a light ground of its own.

    Args:
      patched_LT: of the first network's first sentence: probability of the second noun minus that of the first with
        one vector from its second sentence put in; row 0 is what enters the first layer.
      other_word: the second sentence's last word.
    """
    parts, top = [_text(_LEFT - 20, 34, title, 20, weight=600), _text(_LEFT - 20, 56, subtitle, 12.5, _QUIET)], 72.0
    for network in networks:
        height = 30 + _SENTENCE * len(network.sentences)
        parts.append(_panel(top, height, network.name, network.note))
        for number, sentence in enumerate(network.sentences):
            parts.append(_sentence(sentence, top + 44 + number * _SENTENCE + _ARCS))
        top += height + 12
    height = 92 + _ROW * len(patched_LT)
    first = networks[0].sentences[0]
    note = f"one vector of the sentence with “{other_word}” put into this one: what does “it” stand for then?"
    parts.append(_panel(top, height, "Where the last word decides", note))
    parts.append(_table(first, patched_LT, top + 66))
    height = top + height + 14
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:g}" width="{_WIDTH}" '
        f'height="{height:g}" font-family="DejaVu Sans, Verdana, sans-serif" role="img" aria-label="{escape(title)}">'
        f'<rect width="{_WIDTH}" height="{height:g}" fill="{_GROUND}"/>{"".join(parts)}</svg>'
    )


def pronoun_png(svg: str, scale: float = 2) -> bytes:
    """The picture as PNG, `scale` pixels to the point."""
    import vl_convert

    return paletted(vl_convert.svg_to_png(svg, scale=scale))


def pronoun_page(title: str, svg: str, facts: Sequence[tuple[str, str]], commands: Sequence[str]) -> str:
    """A self-contained HTML page: the picture, what was measured on all held-out pairs, and what made it."""
    rows = "".join(f"<tr><td>{escape(name)}</td><td><b>{escape(value)}</b></td></tr>" for name, value in facts)
    body = f"""<h1>{escape(title)}</h1>
<div class="drawing">{svg}</div>
<p>{escape(_CAUSAL)}</p>
<p class="quiet">{escape(_CAVEAT)}</p>
<h2>On all pairs of nouns that were never seen together</h2>
<table class="facts">{rows}</table>
<h2>How to make it again</h2>
<pre>{escape(chr(10).join(commands))}</pre>"""
    style = "table.facts td { padding: 3px 18px 3px 0; vertical-align: top; } table.facts b { font-weight: 600; }"
    return page(title, body, style)


def _colors(sentence: SentenceView) -> dict[str, str]:
    """The colour of each noun's token."""
    return dict(zip((f" {noun}" for noun in sentence.probability), (BLUE, ORANGE), strict=True))


def _places(tokens: Sequence[str]) -> list[tuple[float, float]]:
    """Left and right end of each token in a line of text; the first one is the end of text, drawn as a dot."""
    letter = _LETTER * _SIZE
    x, places = _LEFT + 2 * letter, [(float(_LEFT), _LEFT + letter)]
    for token in tokens[1:]:
        width = len(token) * letter
        places.append((x + letter * token.startswith(" "), x + width))
        x += width
    return places


def _sentence(sentence: SentenceView, y: float) -> str:
    """The words on the line `y`, lines from *it* above them, shares below, and bars to the right."""
    places, colors, parts = _places(sentence.tokens), _colors(sentence), []
    centers = [(left + right) / 2 for left, right in places]
    foot, start = y - 20, centers[sentence.at]
    for number, share in sorted(enumerate(sentence.shares), key=lambda row: row[1]):
        if number == sentence.at or share < 0.004:
            continue
        color, end = colors.get(sentence.tokens[number], _GREY), centers[number]
        rise = 16 + (_ARCS - 22) * min(1.0, abs(end - start) / (start - _LEFT)) ** 0.7
        peak = foot - rise * 4 / 3  # A cubic rises to three quarters of where its handles stand.
        path = f"M{start:.1f},{foot:g}C{start:.1f},{peak:.1f} {end:.1f},{peak:.1f} {end:.1f},{foot:g}"
        opacity = 0.85 if color != _GREY else 0.5
        parts.append(
            f'<path d="{path}" fill="none" stroke="{color}" stroke-width="{max(0.6, share * _THICKEST):.2f}" '
            f'stroke-opacity="{opacity}"><title>{escape(sentence.tokens[number].strip())}: {share:.1%}</title></path>'
        )
    for number, (token, (left, right)) in enumerate(zip(sentence.tokens, places, strict=True)):
        color = colors.get(token, _INK if number == sentence.at else "")
        if color:
            tint = _TINTS.get(color, "#e4e7eb")
            parts.append(f'<rect x="{left - 4:.1f}" y="{y - 17:g}" width="{right - left + 8:.1f}" height="24" rx="5" '
                         f'fill="{tint}"/>')  # fmt: skip
        parts.append(_word("·" if number == 0 else token.strip(), (left + right) / 2, y, bold=bool(color)))
        share = sentence.shares[number]
        if token in colors or share >= 0.05:
            label = f"{share:.0%}"
            parts.append(_text((left + right) / 2, y + 21, label, 10.5, colors.get(token, _QUIET), anchor="middle"))
    return "".join(parts) + _bars(sentence, y - 14)


def _bars(sentence: SentenceView, y: float) -> str:
    """How probable each noun is, at the right."""
    left, full, parts = _RIGHT, 170, [_text(_RIGHT, y - 24, "“it” stands for", 11, _QUIET)]
    nouns = zip(sentence.probability.items(), (BLUE, ORANGE), strict=True)
    for number, ((noun, probability), color) in enumerate(nouns):
        top = y - 14 + number * 24
        parts.append(f'<rect x="{left}" y="{top:g}" width="{full}" height="17" rx="3" fill="#eef0f3"/>')
        width = max(1.5, full * probability)
        parts.append(f'<rect x="{left}" y="{top:g}" width="{width:.1f}" height="17" rx="3" fill="{color}"/>')
        parts.append(_text(left - 8, top + 13, noun, 12, _INK, anchor="end"))
        parts.append(_text(left + full + 8, top + 13, f"{probability:.1%}", 12, _INK, weight=600))
    return "".join(parts)


def _table(sentence: SentenceView, patched_LT: np.ndarray, y: float) -> str:
    """A cell for each layer and token: which noun *it* stands for once that vector is another sentence's."""
    places, colors, parts = _places(sentence.tokens), _colors(sentence), []
    for number, (token, (left, right)) in enumerate(zip(sentence.tokens, places, strict=True)):
        bold = token in colors or number == sentence.at
        parts.append(_word("·" if number == 0 else token.strip(), (left + right) / 2, y, bold=bold))
        for row, value in enumerate(patched_LT[:, number]):
            inset = 0 if not token.startswith(" ") and number > 1 else 4
            top = y + 12 + row * _ROW
            parts.append(
                f'<rect x="{left - inset:.1f}" y="{top:g}" width="{right - left + inset + 3:.1f}" height="{_ROW - 4}" '
                f'rx="3" fill="{_between(float(value))}" stroke="{_EDGE}" stroke-width="0.7">'
                f"<title>{escape(token.strip())}: {value:+.3f}</title></rect>"
            )
    for row in range(len(patched_LT)):
        label = "enters layer 0" if row == 0 else f"leaves layer {row - 1}"
        parts.append(_text(_RIGHT - 50, y + 27 + row * _ROW, label, 12, _INK))
    x, steps = _RIGHT + 74, 24
    for step in range(steps):
        fill = _between(2 * step / (steps - 1) - 1)
        parts.append(f'<rect x="{x + step * 5}" y="{y + 14:g}" width="5.5" height="12" fill="{fill}"/>')
    for place, noun, anchor in zip((x, x + steps * 5), sentence.probability, ("start", "end"), strict=True):
        parts.append(_text(place, y + 40, noun, 11, _QUIET, anchor=anchor))
    return "".join(parts)


def _between(value: float) -> str:
    """A colour for -1 (blue) ... 0 (white) ... 1 (orange)."""
    value = float(np.clip(value, -1, 1))
    color = BLUE if value < 0 else ORANGE
    channels = [int(color[place : place + 2], 16) for place in (1, 3, 5)]
    return "#" + "".join(f"{round(255 + (channel - 255) * abs(value)):02x}" for channel in channels)


def _panel(top: float, height: float, name: str, note: str) -> str:
    return (
        f'<rect x="14" y="{top:g}" width="{_WIDTH - 28}" height="{height:g}" rx="10" fill="{_PANEL}" stroke="{_EDGE}"/>'
        + _text(_LEFT - 12, top + 26, name, 15, weight=600)
        + _text(_LEFT - 12 + 9.4 * len(name) + 16, top + 26, note, 12, _QUIET)
    )


def _word(text: str, x: float, y: float, bold: bool) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:g}" font-family="{_MONO}" font-size="{_SIZE}" font-weight="{700 if bold else 400}" '
        f'text-anchor="middle" fill="{_INK}">{escape(text)}</text>'
    )


def _text(
    x: float, y: float, text: str, size: float, color: str = _INK, *, weight: int = 400, anchor: str = "start"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:g}" font-size="{size:g}" font-weight="{weight}" text-anchor="{anchor}" '
        f'fill="{color}">{escape(text)}</text>'
    )
