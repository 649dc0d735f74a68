"""How a network goes on with what repeats itself: which heads look where, and what becomes of it without them.

Shapes: B batch, T length, L layers, N heads.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model import build
from model.lens.edits import replaced, spot
from model.lens.heads import head_scores
from model.lens.patch import edited
from model.lens.places import HEADS, WEIGHTS
from model.lens.record import record
from train.checkpoint import Restored, finished_steps, restore_params
from train.data.pipeline import Batch, held_out_batches
from train.data.sources import open_corpus

PREVIOUS = 0.1  # A head that gives the token before so much of its attention, or more, is a previous-token head.

# What may stand in the place of what heads hand on: nothing, its mean over rows and tokens, that of another row
# (resampling), or the mean of all values that they can see, as if they looked nowhere in particular.
ABLATIONS = ("zero", "mean", "another row", "even")


@dataclass(frozen=True)
class Induction:
    """What a network trained on `--data.source=induction` does on held-out rows."""

    step: int
    loss: float  # nats per word that can be known
    accuracy: float
    previous: list[list[float]]  # of each layer's heads, the mean attention to the token before,
    induction: list[list[float]]  # and to what came after the earlier copies of this token.


def held_out_rows(restored: Restored) -> Batch:
    """The first batch of held-out rows."""
    config = restored.config
    return next(iter(held_out_batches(open_corpus(config.data), restored.tokenizer, config)))


def measure(restored: Restored, batch: Batch) -> Induction:
    """The network's loss and the scores of its heads."""
    inputs_BT = jnp.asarray(batch["inputs"])
    found = record(build(restored.config), restored.params, inputs_BT, WEIGHTS[:1])
    scores = head_scores(found[WEIGHTS[0]], inputs_BT)
    loss, accuracy = asked_for(found["logits"], batch)
    previous_LN, induction_LN = (np.asarray(scores[name]).tolist() for name in ("previous", "induction"))
    return Induction(restored.step, loss, accuracy, previous_LN, induction_LN)


def history(folder: Path) -> list[Induction]:
    """The same at each checkpoint that a run has kept."""
    steps = sorted(finished_steps(folder))
    batch = held_out_rows(restore_params(f"{folder}@{steps[-1]}"))
    return [measure(restore_params(f"{folder}@{step}"), batch) for step in steps]


def without(restored: Restored, batch: Batch, off: Sequence[tuple[int, int]], instead: str = "zero") -> float:
    """The loss without the (layer, head) pairs `off`; `instead` is one of ABLATIONS."""
    module, inputs_BT = build(restored.config), jnp.asarray(batch["inputs"])
    T, place, value = inputs_BT.shape[1], WEIGHTS[0] if instead == "even" else HEADS[0], jnp.zeros((1,) * 5)
    if instead == "even":
        value = (jnp.tril(jnp.ones((T, T))) / jnp.arange(1, T + 1, dtype=jnp.float32)[:, None])[None, None, None]
    elif instead != "zero":
        own_LBTNH = record(module, restored.params, inputs_BT, [place])[place]
        value = jnp.roll(own_LBTNH, 1, axis=1)
        if instead == "mean":
            value = jnp.mean(own_LBTNH, axis=(1, 2), keepdims=True)
    at = jnp.zeros((1,) * 5, bool)
    for layer, head in off:
        at = at | spot(module, place, T, layer=layer, head=head)
    return asked_for(edited(module, restored.params, inputs_BT, {place: replaced(at, value)}), batch)[0]


def previous_token_heads(measured: Induction) -> list[tuple[int, int]]:
    """The (layer, head) pairs that look at the token before."""
    places = itertools.product(range(len(measured.previous)), range(len(measured.previous[0])))
    return [(layer, head) for layer, head in places if measured.previous[layer][head] >= PREVIOUS]


def steepest_rise(measured: Sequence[Induction], within: int) -> tuple[float, int, int]:
    """The most that the best induction score of the last layer rises within so many steps, from which to which."""
    pairs = ((a, b) for a in measured for b in measured if 0 < b.step - a.step <= within)
    return max((max(b.induction[-1]) - max(a.induction[-1]), a.step, b.step) for a, b in pairs)


def asked_for(logits_BTV: Any, batch: Batch) -> tuple[float, float]:
    """Mean loss in nats and accuracy on the targets that count."""
    counts_BT = batch["weights"] if "weights" in batch else batch["segments"]
    counts_BT, targets_BT = jnp.asarray(counts_BT != 0), jnp.asarray(batch["targets"])
    log_probability_BTV = jax.nn.log_softmax(jnp.asarray(logits_BTV))
    nll_BT = -jnp.take_along_axis(log_probability_BTV, targets_BT[..., None], axis=-1)[..., 0]
    right_BT = jnp.argmax(log_probability_BTV, axis=-1) == targets_BT
    return float(jnp.mean(nll_BT, where=counts_BT)), float(jnp.mean(right_BT, where=counts_BT))
