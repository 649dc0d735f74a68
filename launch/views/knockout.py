"""Which heads a network needs for some texts: how much worse it predicts them without each.

Shapes: L layers, N heads, B texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from launch.views.page import BLUE, CHART_CONFIG, ORANGE, panel
from launch.views.table import Table, heat_map, side_by_side
from launch.views.view import View, rounded

_RANKED = 16  # Heads in the list.


@dataclass(frozen=True)
class KnockoutView(View):
    """All heads by what silencing them does to the loss."""

    changes_LNB: np.ndarray  # nats a token, by text
    losses_B: np.ndarray  # with all heads, nats a token

    name: ClassVar[str] = "knockout"

    @property
    def interval(self) -> np.ndarray:
        """Half of the 95% confidence interval of each mean over the texts, [L,N]; NaN of one text."""
        from scipy import stats

        texts = self.changes_LNB.shape[-1]
        if texts < 2:
            return np.full(self.changes_LNB.shape[:2], np.nan)
        spread_LN = self.changes_LNB.std(-1, ddof=1) / np.sqrt(texts)
        return stats.t.ppf(0.975, texts - 1) * spread_LN

    def subject(self) -> str:
        """Of how many texts, and how well they are predicted."""
        texts = len(self.losses_B)
        return f"{texts} text{'s' if texts > 1 else ''}, {self.losses_B.mean():.3f} nats a token with all heads"

    def chart(self) -> dict[str, Any]:
        """All heads as a map, and the most needed ones with confidence intervals."""
        mean_LN, interval_LN = self.changes_LNB.mean(-1), self.interval
        layers, heads = mean_LN.shape
        told = [[f"±{value:.4f}" if np.isfinite(value) else "one text" for value in row] for row in interval_LN]
        table = Table(
            mean_LN, [str(layer) for layer in range(layers)], [str(head) for head in range(heads)], ("layer", "head"),
            "nats a token", most=float(np.abs(mean_LN).max()), told={"95% interval": told},
        )  # fmt: skip
        most = f"full color: {np.abs(mean_LN).max():.3f} nats a token"
        signs = (
            "orange: worse without the head; blue: better" if mean_LN.min() < 0 else "darker: worse without the head"
        )
        return side_by_side([heat_map(table, "Loss without each head", [signs, most], (26, 20)), self._ranked()]) | {
            "config": CHART_CONFIG
        }

    def told(self) -> list[str]:
        """How to read it, and what it does not say."""
        return [
            "Each head in turn adds nothing to what is read (Michel et al. 2019, section 2.3), and all texts are "
            "predicted again. The change of the loss is a mean over the texts; the interval says within which bounds "
            "this mean lies with a confidence of 95%, if the texts are a fair sample of those that are meant "
            "(Student’s t).",
            "What one head does may be done by another one as well, or be repaired by later layers: that a network can "
            "do without a head does not mean that the head does nothing.",
        ]

    def numbers(self) -> dict[str, Any]:
        """By layer and head, in nats a token; `changes` by text as well."""
        interval = None if len(self.losses_B) < 2 else rounded(self.interval)
        return {
            "loss": rounded(self.losses_B), "changes": rounded(self.changes_LNB),
            "mean": rounded(self.changes_LNB.mean(-1)), "interval": interval,
        }  # fmt: skip

    def _ranked(self) -> dict[str, Any]:
        import altair as alt

        mean_LN, interval_LN = self.changes_LNB.mean(-1), np.nan_to_num(self.interval)
        order = np.argsort(-np.abs(mean_LN), axis=None)[:_RANKED]
        rows = [
            {"head": f"layer {layer}, head {head}", "mean": float(mean_LN[layer, head]),
             "low": float(mean_LN[layer, head] - interval_LN[layer, head]),
             "high": float(mean_LN[layer, head] + interval_LN[layer, head])}
            for layer, head in np.stack(np.unravel_index(order, mean_LN.shape), -1).tolist()
        ]  # fmt: skip
        base = alt.Chart(alt.InlineData(rows)).encode(
            y=alt.Y("head:N", sort=[row["head"] for row in rows], title=None, axis=alt.Axis(ticks=False, domain=False)),
            tooltip=["head:N", *(alt.Tooltip(f"{name}:Q", format=".4f") for name in ("mean", "low", "high"))],
        )
        x = alt.X("mean:Q", title="change of the loss, nats a token")
        color = alt.condition("datum.mean < 0", alt.value(BLUE), alt.value(ORANGE))
        bars = base.mark_bar(height=10, cornerRadius=2, opacity=0.8).encode(x=x, color=color)
        whiskers = base.mark_rule(strokeWidth=1.5, stroke="currentColor").encode(x="low:Q", x2="high:Q")
        title = alt.TitleParams("The heads that matter most", subtitle="lines: 95% confidence over the texts")
        return panel(alt.layer(bars, whiskers).properties(width=320, height=20 * len(rows), title=title))
