"""How well a network predicts text that it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model.sharding import batch_sharding
from train.loss import cross_entropy
from train.step import network_inputs, target_weights

Evaluate = Callable[..., dict[str, float] | None]


def make_evaluate(module: Any, byte_lengths_V: np.ndarray, mesh: jax.sharding.Mesh) -> Evaluate:
    """`evaluate(params, batches, stop=lambda: False)`, compiled once, for batches of this process's rows.

    It returns eval/loss (nats per token), eval/bits_per_byte and eval/tokens, or None if `stop()` became
    true between two batches. Bits per byte are the bits for all targets, end_of_text included, by the bytes
    of the text alone (`byte_lengths_V`, int32: the bytes of each token): they don't depend on the tokenizer.
    """

    @jax.jit
    def sums_of(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        logits_BTV = module.apply({"params": params}, **network_inputs(batch))
        weights_BT = target_weights(batch)
        loss = cross_entropy(logits_BTV, batch["targets"], weights_BT)
        bytes_BT = jnp.where(weights_BT != 0, jnp.asarray(byte_lengths_V)[batch["targets"]], 0)
        return jnp.stack([loss.nll, loss.targets, jnp.sum(bytes_BT).astype(jnp.float32)])

    def evaluate(
        params: Any, batches: Iterable[dict[str, np.ndarray]], stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        total_3, running = np.zeros(3), None
        with jax.set_mesh(mesh):
            for batch in batches:
                if stop():
                    return None
                before, running = running, sums_of(params, put(batch, mesh))
                if before is not None:  # read while the next batch is computed
                    total_3 += np.asarray(before, np.float64)
        if running is not None:
            total_3 += np.asarray(running, np.float64)
        nll, tokens, text_bytes = total_3.tolist()
        return {
            "eval/loss": nll / max(tokens, 1),
            "eval/bits_per_byte": nll / math.log(2) / max(text_bytes, 1),
            "eval/tokens": tokens,
        }

    return evaluate


def put(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch, as arrays of the whole batch over the devices of `mesh`."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
