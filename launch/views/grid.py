"""One head as a table of who reads how much from whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from launch.views.attention import attention_told, check
from launch.views.attention_panels import Seen
from launch.views.knocked import Knocked
from launch.views.page import CHART_CONFIG
from launch.views.pieces import visible
from launch.views.table import Table, heat_map, side_by_side
from launch.views.view import View, rounded


@dataclass(frozen=True)
class GridView(View):
    """The weights of one head, with what knocking it out does."""

    seen: Seen
    picked: tuple[int, int]  # layer, head
    knocked: Knocked | None = None

    name: ClassVar[str] = "grid"

    def subject(self) -> str:
        """Which head."""
        return f"layer {self.picked[0]}, head {self.picked[1]}"

    def chart(self) -> dict[str, Any]:
        """The table of whole characters, and the knock-out beside it."""
        return self._chart(self.seen.in_pieces())

    def by_token(self) -> dict[str, Any] | None:
        """The same, token by token."""
        return self._chart(self.seen) if self.seen.split else None

    def told(self) -> list[str]:
        """What is seen, and what is not."""
        return attention_told(self.seen)

    def numbers(self) -> dict[str, Any]:
        """The weights by query and key."""
        layer, head = self.picked
        numbers = {
            "layer": layer, "head": head, "tokens": list(self.seen.queries.tokens),
            "weights": rounded(self.seen.weights_LNTS[self.picked]),
        }  # fmt: skip
        return numbers if self.knocked is None else numbers | {"knocked_out": self.knocked.of_head(self.picked)}

    def _chart(self, seen: Seen) -> dict[str, Any]:
        check(seen)
        weights_TS = seen.weights_LNTS[self.picked]
        names = [visible(token) for token in seen.keys.tokens]
        size = max(8, min(30, 660 // len(names)))
        shown_TS = np.where(np.tri(*weights_TS.shape, dtype=bool), weights_TS, np.nan) if seen.causal else weights_TS
        written = [[f"{weight:.2f}" if weight >= 0.05 else "" for weight in row] for row in weights_TS]
        table = Table(
            shown_TS, [visible(token) for token in seen.queries.tokens], names, ("query: who looks", "key: at whom"),
            "weight", root=True, written=written if size >= 26 else None,
        )  # fmt: skip
        title = f"Layer {self.picked[0]}, head {self.picked[1]}"
        subtitle = ["one row a query; shade: square root of the weight"]
        if seen.causal:
            subtitle.append("a row cannot depend on what comes after its token")
        panels = [heat_map(table, title, subtitle, (size, size))]
        if self.knocked is not None:
            panels.append(self.knocked.panel(self.picked))
        return side_by_side(panels) | {"config": CHART_CONFIG}
