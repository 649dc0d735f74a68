"""What becomes of the prediction when a head is silenced: the check that stands beside a picture of its attention.

Shapes: L layers, N heads, K candidates for the next token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from launch.views.page import BLUE, ORANGE, panel
from launch.views.pieces import visible
from launch.views.view import rounded

if TYPE_CHECKING:
    import altair as alt

_TITLE = (
    "pick.head[0] == 'mean' ? 'Without all heads of layer ' + pick.layer[0] : "
    "'Without layer ' + pick.layer[0] + ', head ' + pick.head[0]"
)


@dataclass(frozen=True)
class Knocked:
    """The likeliest tokens after a text, and how likely each is without each head."""

    candidates: Sequence[str]  # K, the likeliest first
    before_K: np.ndarray  # probabilities
    after_LNK: np.ndarray
    question: str = "what comes next"

    @property
    def names(self) -> list[str]:
        """The candidates with their ranks: two tokens may look the same."""
        return [f"{number + 1}. {visible(token)}" for number, token in enumerate(self.candidates)]

    def beside(self, spec: dict[str, Any], heads: Sequence[Any]) -> dict[str, Any]:
        """The linked panels `spec` with one more, which shows what silencing the head that is picked there does.

        Args:
          heads: what they are called there.
        """
        import altair as alt

        after_LNK = np.round(self.after_LNK.astype(float), 5)
        without = [
            {"layer": layer, "head": heads[head], "token": self.names[k], "p": after_LNK[layer, head, k]}
            for layer, head, k in np.ndindex(after_LNK.shape)
        ]
        picked = alt.Chart(alt.NamedData("knocked")).transform_filter({"param": "pick"})
        panel = self._panel(picked, alt.expr(_TITLE))
        return spec | {"concat": [*spec["concat"], panel], "datasets": spec["datasets"] | {"knocked": without}}

    def panel(self, head: tuple[int, int]) -> dict[str, Any]:
        """What silencing one (layer, head) does."""
        import altair as alt

        chart = alt.Chart(alt.InlineData(self._rows(self.after_LNK[head])))
        return self._panel(chart, f"Without layer {head[0]}, head {head[1]}")

    def of_head(self, head: tuple[int, int]) -> dict[str, Any]:
        """For scripts: the probabilities with all heads, and without this (layer, head)."""
        return self.numbers() | {"without": rounded(self.after_LNK[head])}

    def numbers(self) -> dict[str, Any]:
        """For scripts: probabilities with all heads, and without each as `[layer][head][candidate]`."""
        return {
            "candidates": list(self.candidates), "probability": rounded(self.before_K),
            "without": rounded(self.after_LNK),
        }  # fmt: skip

    def _rows(self, p_K: np.ndarray) -> list[dict[str, Any]]:
        return [{"token": name, "p": round(float(p), 5)} for name, p in zip(self.names, p_K, strict=True)]

    def _panel(self, without: alt.Chart, title: Any) -> dict[str, Any]:
        import altair as alt

        legend = [f"{self.question}: wide blue bars with all", "heads, narrow orange bars and numbers without"]
        axis = alt.Axis(ticks=False, domain=False, labelLimit=110)
        y = alt.Y("token:N", sort=self.names, title=None, axis=axis)
        scale = alt.Scale(domain=[0, 1])
        x = alt.X("p:Q", title="probability of the next token", scale=scale, axis=alt.Axis(tickCount=5))
        tooltip = ["token:N", alt.Tooltip("p:Q", format=".4f", title="probability")]
        whole = alt.Chart(alt.InlineData(self._rows(self.before_K)))
        return panel(alt.layer(
            whole.mark_bar(height=16, cornerRadius=2, color=BLUE, opacity=0.35).encode(x=x, y=y, tooltip=tooltip),
            without.mark_bar(height=6, cornerRadius=2, color=ORANGE).encode(x=x, y=y, tooltip=tooltip),
            without.mark_text(align="left", dx=4, fontSize=11).encode(x=x, y=y, text=alt.Text("p:Q", format=".3f")),
        ).properties(
            width=220, height=24 * len(self.candidates), title=alt.TitleParams(title, subtitle=legend)
        ))  # fmt: skip
