"""A text in which every token is colored by how well the network expected it, with what else it expected there.

Shapes: P pieces of the text, K candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from launch.views.page import BLUE, CHART_CONFIG, ORANGE
from launch.views.pieces import is_wide, visible
from launch.views.view import View

_LINE, _SIZE, _LETTER = 1000, 15, 0.62  # width of a line of text, size of its letters in points, their width over it
_ROW = 44  # From one line to the next.
_MOST_BITS = 12  # Of surprise or doubt: the full color.
_SHADES = {"probability": "probability", "surprisal": "surprisal (bits)", "entropy": "entropy (bits)"}


@dataclass(frozen=True)
class Expected:
    """A token, or several that make up a character, after what stands before."""

    text: str
    logprob: float | None  # natural logarithm; None for what the network only reads
    entropy: float | None  # of the distributions that its tokens were chosen from, in nats, summed
    top: Sequence[tuple[str, float]]  # the likeliest tokens there, with their probabilities


@dataclass(frozen=True)
class TokensView(View):
    """A text, token by token."""

    tokens: Sequence[Expected]
    pieces: Sequence[Expected]  # the same, with the tokens of a character together

    name: ClassVar[str] = "tokens"

    def subject(self) -> str:
        """How well all of it was expected."""
        bits = [-token.logprob / math.log(2) for token in self.tokens if token.logprob is not None]
        mean = f"{sum(bits) / len(bits):.3f} bits a token" if bits else "nothing to predict"
        return f"{len(self.tokens)} tokens, {mean}; under each token, what was likeliest where it was not the likeliest"

    def chart(self) -> dict[str, Any]:
        """The text, a character a box at least."""
        return _chart(self.pieces)

    def by_token(self) -> dict[str, Any] | None:
        """The text, a token a box."""
        return _chart(self.tokens) if len(self.tokens) > len(self.pieces) else None

    def told(self) -> list[str]:
        """What the colors mean."""
        return [
            "Probability: how likely the network held the token after all that stands before it (darker: likelier). "
            "Surprisal: the bits that this token takes, −log₂ of its probability. Entropy: the bits that were to be "
            "expected there, before the token was known; a token that surprises more than that stands out. Point at a "
            "token for the numbers and for the likeliest others."
        ]

    def numbers(self) -> dict[str, Any]:
        """By token: natural logarithms of probabilities, entropies in nats."""
        return {"tokens": [
            {"text": token.text, "logprob": token.logprob, "entropy": token.entropy,
             "top": [{"text": text, "probability": p} for text, p in token.top]}
            for token in self.tokens
        ]}  # fmt: skip


def _chart(tokens: Sequence[Expected]) -> dict[str, Any]:
    import altair as alt

    rows = _rows(tokens)
    shade = alt.param(
        name="shade", value="probability",
        bind=alt.binding_radio(options=list(_SHADES), labels=[*_SHADES.values()], name="color: "),
    )  # fmt: skip
    base = (
        alt.Chart(alt.InlineData(rows))
        .transform_calculate(
            depth=f"!isValid(datum.p) ? 0 : shade == 'probability' ? datum.p : min(1, datum[shade] / {_MOST_BITS})"
        )
        .encode(x=alt.X("x:Q", scale=None, axis=None), y=alt.Y("y:Q", scale=None, axis=None))
    )
    numbers = [
        alt.Tooltip("name:N", title="token"), alt.Tooltip("p:Q", title="probability", format=".4f"),
        alt.Tooltip("surprisal:Q", title="surprisal, bits", format=".2f"),
        alt.Tooltip("entropy:Q", title="entropy, bits", format=".2f"),
    ]  # fmt: skip
    most = max((len(token.top) for token in tokens), default=0)
    numbers += [alt.Tooltip(f"top{rank}:N", title=f"{rank}.") for rank in range(1, most + 1)]
    color = alt.condition("shade == 'probability'", alt.value(BLUE), alt.value(ORANGE))
    box = base.mark_rect(cornerRadius=3).encode(
        x2="x2:Q", y2="y2:Q", color=color, tooltip=numbers,
        opacity=alt.Opacity("depth:Q", scale=alt.Scale(domain=[0, 1], range=[0.06, 0.75]), legend=None),
    )  # fmt: skip
    mono = "DejaVu Sans Mono, Noto Sans Mono CJK SC, Menlo, Consolas, monospace"
    text = base.mark_text(align="left", baseline="middle", fontSize=_SIZE, font=mono, dx=2, dy=11).encode(text="name:N")
    other = base.mark_text(align="left", baseline="middle", fontSize=9, dx=2, dy=28, opacity=0.75).encode(
        text="other:N"
    )
    height = max(row["y2"] for row in rows) + 18
    chart = alt.layer(box, text, other).properties(width=_LINE, height=height).add_params(shade)
    return chart.to_dict() | {"config": CHART_CONFIG}


def _rows(tokens: Sequence[Expected]) -> list[dict[str, Any]]:
    """Where each box stands, and what it says."""
    rows, x, y = [], 0.0, 0.0
    for token in tokens:
        name, best = visible(token.text), token.top[0] if token.top else None
        other = "" if best is None or best[0] == token.text else f"{visible(best[0])} {best[1]:.0%}"
        width = max(_width(name, _SIZE), _width(other, 8.5)) + 5
        if x and x + width > _LINE:
            x, y = 0.0, y + _ROW
        row = {"x": round(x, 1), "x2": round(x + width - 1, 1), "y": y, "y2": y + 22, "name": name, "other": other}
        if token.logprob is not None and token.entropy is not None:
            row |= {
                "p": round(math.exp(token.logprob), 6), "surprisal": round(-token.logprob / math.log(2), 3),
                "entropy": round(token.entropy / math.log(2), 3),
            }  # fmt: skip
        row |= {f"top{rank}": f"{visible(text)}  {p:.3f}" for rank, (text, p) in enumerate(token.top, 1)}
        rows.append(row)
        x += width
        if "\n" in token.text:
            x, y = 0.0, y + _ROW
    return rows


def _width(text: str, size: float) -> float:
    return sum(1.05 if is_wide(character) else _LETTER for character in text) * size
