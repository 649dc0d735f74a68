"""The whole network at a glance: all heads as small pictures, and what each one looks for.

Shapes: L layers, N heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from launch.views.attention import attention_told, check
from launch.views.attention_panels import Seen, pictures, pictures_panel
from launch.views.page import CHART_CONFIG
from launch.views.table import Table, heat_map, side_by_side
from launch.views.view import View, rounded

SCORES = {
    "previous": "looks at the token before",
    "duplicate": "looks at earlier copies",
    "induction": "looks behind earlier copies",
    "sink": "looks at the first token",
    "distance": "looks so many tokens away",
    "entropy": "looks so widely, in nats",
}
KNOCKED = ("knocked out", "loss without it, nats a token")


@dataclass(frozen=True)
class ModelView(View):
    """All heads with their scores."""

    seen: Seen
    scores: Mapping[str, np.ndarray]  # by name, each [L,N]; NaN where a score has no meaning for this text
    changes_LN: np.ndarray | None  # of the loss without each head, nats a token; None of a network without a next token

    name: ClassVar[str] = "model"

    def subject(self) -> str:
        """The head that scores highest by each measure."""
        return "; ".join(f"{name}: {self._best(scores_LN)}" for name, scores_LN in self._shares().items())

    def chart(self) -> dict[str, Any]:
        """Small pictures, then a map for each score."""
        check(self.seen)
        seen = self.seen.in_pieces()
        layers, heads = seen.weights_LNTS.shape[:2]
        known = [name for name in SCORES if np.isfinite(self.scores[name]).all()]
        maps = [(name, SCORES[name], self.scores[name]) for name in known]
        if self.changes_LN is not None:
            maps.append((*KNOCKED, self.changes_LN))
        deep = layers > max(12, heads)  # Layers across, as with the pictures.
        grid = pictures_panel(layers, seen.names, "All heads", "dark: looks there")
        columns = 2 if deep else 3
        scores = side_by_side([self._map(*of, deep=deep) for of in maps], columns) | {"align": "each"}
        pick = {"name": "pick", "select": {"type": "point", "fields": ["layer", "head"]}, "views": ["frames"]}
        return side_by_side([grid, scores], columns=1 if deep else 2) | {
            "align": "none", "params": [pick], "datasets": {"pictures": pictures(seen)}, "config": CHART_CONFIG,
        }  # fmt: skip

    def told(self) -> list[str]:
        """What the scores are, and what they are not."""
        return [
            "Scores are means over the tokens for which they are defined (model/lens/heads.py); the largest is named "
            "over each map; where no token stands twice, those of copies are left out. A head whose score is high does "
            "that on this text; what it does on others must be measured on others. The last map is the causal check: "
            "how much worse this text is predicted without the head.",
            *attention_told(self.seen),
        ]

    def numbers(self) -> dict[str, Any]:
        """Scores by layer and head; none where a score has no meaning for this text."""
        scores = {name: rounded(of_LN) for name, of_LN in self.scores.items() if np.isfinite(of_LN).all()}
        changes = None if self.changes_LN is None else rounded(self.changes_LN)
        return {"tokens": list(self.seen.queries.tokens), "scores": scores, "loss_without": changes}

    def _shares(self) -> dict[str, np.ndarray]:
        """The scores that are between 0 and 1 and that this text has."""
        return {
            name: of_LN for name, of_LN in self.scores.items()
            if name not in ("distance", "entropy") and np.isfinite(of_LN).all()
        }  # fmt: skip

    def _best(self, scores_LN: np.ndarray) -> str:
        layer, head = np.unravel_index(scores_LN.argmax(), scores_LN.shape)
        return f"{scores_LN[layer, head]:.2f} in layer {layer}, head {head}"

    def _map(self, name: str, meaning: str, scores_LN: np.ndarray, deep: bool) -> dict[str, Any]:
        layers, heads = ([str(number) for number in range(count)] for count in scores_LN.shape)
        layer, head = np.unravel_index(np.abs(scores_LN).argmax(), scores_LN.shape)
        told = f"most: {scores_LN[layer, head]:.3g} in layer {layer}, head {head}"
        most = 1.0 if name in self._shares() else float(np.abs(scores_LN[layer, head]))
        table = Table(scores_LN, layers, heads, ("layer", "head"), name, most=most)
        if deep:
            table = Table(scores_LN.T, heads, layers, ("head", "layer"), name, most=most)
        return heat_map(table, name, [meaning, told], (18 if deep else 24, 16))
