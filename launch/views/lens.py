"""What the network would say next if it stopped after each layer.

Shapes: R rows, which are the embedding and the L layers, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from launch.views.page import CHART_CONFIG
from launch.views.pieces import Pieces, visible
from launch.views.table import Table, heat_map, side_by_side
from launch.views.view import View, rounded


@dataclass(frozen=True)
class LensView(View):
    """A table of layers and tokens with the likeliest next token in each cell."""

    pieces: Pieces
    top: Sequence[Sequence[str]]  # the likeliest next token [R][T]
    probability_RT: np.ndarray  # of that one
    entropy_RT: np.ndarray  # nats
    following_RT: np.ndarray  # the probability of the token that follows in the text; NaN after the last

    name: ClassVar[str] = "lens"

    def subject(self) -> str:
        """What is in the cells."""
        return f"after each of {len(self.top) - 1} layers, the likeliest next token; darker: likelier"

    def chart(self) -> dict[str, Any]:
        """What would be said after each whole character."""
        return self._chart(
            [start - 1 for start in [*self.pieces.starts[1:], len(self.pieces.tokens)]], self.pieces.texts
        )

    def by_token(self) -> dict[str, Any] | None:
        """What would be said after each token."""
        tokens = self.pieces.tokens
        return self._chart(list(range(len(tokens))), tokens) if self.pieces.split else None

    def told(self) -> list[str]:
        """How to read the table, and what it does not say."""
        return [
            "The logit lens (nostalgebraist 2020): the residual stream after each layer goes through the final norm "
            "and the output layer, as if nothing came after. The last row is what the network really predicts; going "
            "up, one sees where that is decided, and what was expected before. Point at a cell for its probability, "
            "for its entropy, and for the probability of the token that follows in the text.",
            "Layers are not trained to be read early: a vector may hold what a later layer needs in a form that the "
            "output layer cannot read. What the first rows say is often nothing.",
        ]

    def numbers(self) -> dict[str, Any]:
        """By row (the embedding, then each layer) and token."""
        following_RT = np.where(np.isnan(self.following_RT), 0, self.following_RT)[:, :-1]
        return {
            "tokens": list(self.pieces.tokens), "top": [list(row) for row in self.top],
            "probability": rounded(self.probability_RT), "entropy": rounded(self.entropy_RT),
            "following": rounded(following_RT),
        }  # fmt: skip

    def letters(self) -> str:
        """Also what is predicted."""
        return super().letters() + "".join("".join(row) for row in self.top)

    def _chart(self, places: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
        def digits(values_RT: np.ndarray, number: str) -> list[list[str]]:
            return [["" if math.isnan(value) else f"{value:{number}}" for value in row] for row in values_RT[:, places]]

        table = Table(
            self.probability_RT[:, places],
            ["embedding", *(f"layer {layer}" for layer in range(len(self.top) - 1))],
            [visible(name) for name in names],
            ("after", "read so far, up to"),
            "probability",
            written=[[visible(row[place]) for place in places] for row in self.top],
            told={
                "likeliest next": [[visible(row[place]) for place in places] for row in self.top],
                "entropy (bits)": digits(self.entropy_RT / math.log(2), ".2f"),
                "probability of what follows": digits(self.following_RT, ".4f"),
            },
        )
        width = max(44, min(76, 1100 // len(names)))
        panel = heat_map(table, "What would come next", "read downwards: the last row is the prediction", (width, 20))
        return side_by_side([panel]) | {"config": CHART_CONFIG}
