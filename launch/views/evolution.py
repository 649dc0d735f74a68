"""How heads come to be: what each one looks for at every checkpoint of a run, under its loss.

Shapes: C checkpoints, L layers, N heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from launch.views.model import SCORES
from launch.views.page import BLUE, CHART_CONFIG, ORANGE, PALETTE, panel
from launch.views.view import View, rounded

_SHOWN = ("previous", "induction", "duplicate", "sink")
_ALWAYS, _LEAST = ("previous", "induction"), 0.2
_WIDTH, _HEIGHT = 620, 130


@dataclass(frozen=True)
class EvolutionView(View):
    """Scores of all heads over the steps of a run."""

    steps: Sequence[int]  # C
    losses_C: np.ndarray  # of the text, nats a token
    scores: Mapping[str, np.ndarray]  # by name, each [C,L,N]; NaN where a score has no meaning for this text
    training: Sequence[tuple[int, float]]  # step and loss, as logged during training

    name: ClassVar[str] = "evolution"

    def subject(self) -> str:
        """From which step to which."""
        return f"{len(self.steps)} checkpoints, steps {self.steps[0]} to {self.steps[-1]}"

    def chart(self) -> dict[str, Any]:
        """The loss, and below it a curve for each head by each score, on one axis of steps."""
        import altair as alt

        rows = [{"step": step, "loss": loss, "of": "training"} for step, loss in self.training]
        here = [
            {"step": step, "loss": round(float(loss), 5), "of": "this text"}
            for step, loss in zip(self.steps, self.losses_C, strict=True)
        ]
        last = max([*self.steps, *(step for step, _ in self.training)])
        axis = alt.Scale(domain=[0, last], nice=False)
        x = alt.X("step:Q", scale=axis, title="step", axis=alt.Axis(grid=False))
        color = alt.Color("of:N", title=None, scale=alt.Scale(domain=["training", "this text"], range=[BLUE, ORANGE]))
        loss = alt.Chart(alt.InlineData(rows + here)).encode(
            x=x, y=alt.Y("loss:Q", title="nats a token", scale=alt.Scale(zero=False)), color=color,
            tooltip=["of:N", "step:Q", alt.Tooltip("loss:Q", format=".4f")],
        )  # fmt: skip
        points = loss.transform_filter("datum.of == 'this text'").mark_circle(size=28, opacity=1)
        panels = [panel(alt.layer(loss.mark_line(strokeWidth=1.5), points).properties(
            width=_WIDTH, height=_HEIGHT, title="Loss"))]  # fmt: skip
        return {
            "vconcat": [*panels, *(self._curves(name, x) for name in self._shown())],
            "resolve": {"scale": {"color": "independent"}}, "config": CHART_CONFIG,
        }  # fmt: skip

    def told(self) -> list[str]:
        """What the curves are."""
        return [
            "Each line is a head; its color is its layer. Scores are means over the tokens for which they are defined "
            "(model/lens/heads.py), at each checkpoint that the run kept, on the text above. An induction head needs a "
            "head in an earlier layer that looks at the token before; both come together, and the loss falls with them "
            "(Olsson et al. 2022, “In-context Learning and Induction Heads”).",
            "That a score rises when the loss falls does not prove that the head is the reason: knock it out "
            "(--view=knockout).",
        ]

    def numbers(self) -> dict[str, Any]:
        """Scores by step, layer and head."""
        scores = {name: rounded(of) for name, of in self.scores.items() if np.isfinite(of).all()}
        training = [{"step": step, "loss": loss} for step, loss in self.training]
        return {"steps": list(self.steps), "loss": rounded(self.losses_C), "scores": scores, "training": training}

    def _shown(self) -> list[str]:
        """Previous and induction, and the others if some head has them at some time."""
        known = [name for name in _SHOWN if np.isfinite(self.scores[name]).all()]
        return [name for name in known if name in _ALWAYS or self.scores[name].max() >= _LEAST]

    def _curves(self, name: str, x: Any) -> dict[str, Any]:
        import altair as alt

        scores_CLN = self.scores[name]
        layers = scores_CLN.shape[1]
        rows = [
            {
                "step": self.steps[at],
                "layer": layer,
                "head": head,
                "score": round(float(scores_CLN[at, layer, head]), 4),
            }
            for at, layer, head in np.ndindex(scores_CLN.shape)
        ]
        layer, head = np.unravel_index(scores_CLN[-1].argmax(), scores_CLN[-1].shape)
        scale = (
            alt.Scale(domain=list(range(layers)), range=list(PALETTE[:layers]))
            if layers <= len(PALETTE)
            else alt.Scale(scheme="viridis")
        )
        kind = "O" if layers <= len(PALETTE) else "Q"
        lines = (
            alt.Chart(alt.InlineData(rows))
            .mark_line(strokeWidth=1.5, opacity=0.8, point=alt.OverlayMarkDef(size=24))
            .encode(
                x=x, y=alt.Y("score:Q", title=name, scale=alt.Scale(domain=[0, 1])), detail="head:N",
                color=alt.Color(f"layer:{kind}", scale=scale, title="layer"),
                tooltip=["step:Q", "layer:Q", "head:Q", alt.Tooltip("score:Q", format=".3f")],
            )
        )  # fmt: skip
        best = f"at the end most in layer {layer}, head {head}: {scores_CLN[-1, layer, head]:.2f}"
        title = alt.TitleParams(f"{name}: {SCORES[name]}", subtitle=best)
        return panel(lines.properties(width=_WIDTH, height=_HEIGHT, title=title))
