"""Whether predicted probabilities can be taken at their word, and how much a text repeats itself.

Shapes: B batch, T length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train.data.pipeline import Batch
from train.step import network_inputs, target_weights

BINS = 10


@dataclass(frozen=True)
class Calibration:
    """Of the likeliest token at each place, by how probable it was: in each of ten equal ranges of probability."""

    tokens: list[int]  # how many places fell there,
    probability: list[float]  # how probable the likeliest token was there on average,
    right: list[float]  # and how often it was the one that came.

    @property
    def error(self) -> float:
        """The mean difference between the two: the expected calibration error (Guo et al. 2017, equation 3)."""
        tokens = np.array(self.tokens)
        differences = np.abs(np.array(self.probability) - np.array(self.right))
        return float(tokens @ differences / tokens.sum())


def calibration(module: Any, params: Any, batches: Iterable[Batch]) -> Calibration:
    """How often the likeliest token comes, by how probable the network says that it is."""
    sums_3C = np.zeros((3, BINS))
    for batch in batches:
        sums_3C += np.asarray(_sums(module, params, {name: jnp.asarray(rows) for name, rows in batch.items()}))
    tokens_C, probability_C, right_C = sums_3C
    count_C = np.maximum(tokens_C, 1)
    return Calibration(tokens_C.astype(int).tolist(), (probability_C / count_C).tolist(), (right_C / count_C).tolist())


@partial(jax.jit, static_argnums=0)
def _sums(module: Any, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """Of each range: places, summed probabilities of the likeliest tokens, and how many of these came, [3,C]."""
    probability_BTV = jax.nn.softmax(module.apply({"params": params}, **network_inputs(batch)))
    probability_BT, likeliest_BT = jnp.max(probability_BTV, -1), jnp.argmax(probability_BTV, -1)
    counts_BT = target_weights(batch)
    right_BT = counts_BT * (likeliest_BT == batch["targets"]).astype(jnp.float32)
    bin_BT = jnp.minimum((probability_BT * BINS).astype(jnp.int32), BINS - 1)
    here_BTC = jax.nn.one_hot(bin_BT, BINS)
    return jnp.stack([
        jnp.einsum("BT,BTC->C", of_BT, here_BTC) for of_BT in (counts_BT, counts_BT * probability_BT, right_BT)
    ])  # fmt: skip


def distinct(texts: Sequence[Sequence[int]], length: int) -> float:
    """Of the runs of `length` tokens in each text, the share that are different, on average (Li et al. 2016).

    Texts shorter than that do not count; NaN if all are.
    """
    shares = []
    for tokens in texts:
        runs = [tuple(tokens[start : start + length]) for start in range(len(tokens) - length + 1)]
        shares += [len(set(runs)) / len(runs)] if runs else []
    return float(np.mean(shares)) if shares else float("nan")
