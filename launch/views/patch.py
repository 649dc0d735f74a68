"""Where in a network two texts come to differ: what becomes of the prediction when one vector is the other text's.

Shapes: L layers, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from launch.views.page import CHART_CONFIG
from launch.views.pieces import visible
from launch.views.table import Table, heat_map, side_by_side
from launch.views.view import View, rounded


@dataclass(frozen=True)
class PatchView(View):
    """A map of layers and tokens."""

    tokens: Sequence[str]
    other: str  # the other text
    others: Sequence[str]  # its tokens
    answers: tuple[str, str]  # next tokens: what this text makes likelier, what the other one does
    differences: tuple[
        float, float
    ]  # logit of the second answer minus that of the first after this text, after the other
    patched_LT: np.ndarray  # the same after this text, with the vector that enters layer l at token t from the other

    name: ClassVar[str] = "patch"

    @property
    def moved(self) -> np.ndarray:
        """How far the prediction goes from that after this text, 0, to that after the other, 1; [L,T]."""
        first, second = self.differences
        return (self.patched_LT - first) / (second - first)

    def subject(self) -> str:
        """What is put into what, and how the prediction is measured."""
        ours, theirs = map(visible, self.answers)
        return (
            f"one vector of “{self.other}” put into this text; 0: {ours} is preferred to {theirs} as it is, "
            f"1: {theirs} is preferred as after the other text"
        )

    def chart(self) -> dict[str, Any]:
        """Layers down, tokens across."""
        names = [
            visible(ours) if ours == theirs else f"{visible(ours)} ← {visible(theirs)}"
            for ours, theirs in zip(self.tokens, self.others, strict=True)
        ]
        layers, moved_LT = [f"enters {layer}" for layer in range(len(self.patched_LT))], self.moved
        step = max(16, min(44, 900 // len(names)))
        written = [[f"{value:.1f}" if abs(value) >= 0.05 else "" for value in row] for row in moved_LT]
        logits = [[f"{value:+.2f}" for value in row] for row in self.patched_LT]
        table = Table(
            moved_LT, layers, names, ("layer", "token"), "moved", written=written if step >= 24 else None,
            told={"logit difference": logits},
        )  # fmt: skip
        title = f"How far one vector moves the prediction from {visible(self.answers[0])} to {visible(self.answers[1])}"
        spec = side_by_side([heat_map(table, title, "orange or dark: towards the other text", (step, 20))])
        return spec | {"config": CHART_CONFIG}

    def told(self) -> list[str]:
        """How to read the map, and what it does not say."""
        first, second = self.differences
        return [
            "Activation patching (Vig et al. 2020; Meng et al. 2022): this text is read again for every cell, each "
            "time with one vector of the residual stream, that which enters the layer at the token, from the other "
            f"text. Logit of {visible(self.answers[1])} minus that of {visible(self.answers[0])}: {first:+.2f} after "
            f"this text, {second:+.2f} after the other. Where both texts have the same beginning, nothing can differ "
            "in a network that reads from left to right; further on one sees at which token the difference stands in "
            "which layer, and how it travels to the last one, where the prediction is made.",
            "A cell that moves the prediction carries what differs between these two texts, and only that; two texts "
            "that differ in more than one respect tell little.",
        ]

    def numbers(self) -> dict[str, Any]:
        """Logit differences by layer and token."""
        return {
            "tokens": list(self.tokens), "other": self.other, "other_tokens": list(self.others),
            "answers": list(self.answers), "difference": self.differences[0], "other_difference": self.differences[1],
            "patched": rounded(self.patched_LT), "moved": rounded(self.moved),
        }  # fmt: skip
