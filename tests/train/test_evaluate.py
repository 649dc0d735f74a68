from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.schema import Mesh
from model.sharding import make_mesh
from train.evaluate import make_evaluate

V = 5
BYTE_LENGTHS_V = np.array([0, 1, 2, 3, 4], np.int32)  # token 0 is end_of_text


class Table:
    """Logits that depend on the token alone."""

    def apply(self, variables: Any, tokens_BT: jax.Array, *_: Any, deterministic: bool) -> jax.Array:
        assert deterministic
        return variables["params"][tokens_BT]


def batches(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    shape = (8, 6)
    return [
        {name: rng.integers(0, high, shape).astype(np.int32)
         for name, high in (("inputs", V), ("targets", V), ("segments", 3), ("positions", 6))}
        for _ in range(count)
    ]  # fmt: skip


def test_bits_per_byte_count_every_target_and_the_bytes_of_the_text_alone():
    table_VV = np.random.default_rng(1).normal(size=(V, V))
    evaluate = make_evaluate(Table(), BYTE_LENGTHS_V, make_mesh(Mesh()))
    data = batches(3)
    result = evaluate(jnp.asarray(table_VV, jnp.float32), data)
    logs_VV = table_VV - np.log(np.exp(table_VV).sum(-1, keepdims=True))
    nll = tokens = size = 0.0
    for b in data:
        counts = b["segments"] != 0
        nll -= logs_VV[b["inputs"], b["targets"]][counts].sum()
        tokens += counts.sum()
        size += BYTE_LENGTHS_V[b["targets"]][counts].sum()
    assert result == {
        "eval/loss": pytest.approx(nll / tokens, rel=1e-6),
        "eval/bits_per_byte": pytest.approx(nll / np.log(2) / size, rel=1e-6),
        "eval/tokens": tokens,
    }


def test_a_uniform_guess_over_bytes_costs_eight_bits_per_byte():
    evaluate = make_evaluate(Table(), np.ones(256, np.int32), make_mesh(Mesh(), jax.devices()[:1]))
    ones = np.ones((2, 4), np.int32)
    batch = {"inputs": ones, "targets": ones, "segments": ones, "positions": ones}
    assert evaluate(jnp.zeros((256, 256)), [batch])["eval/bits_per_byte"] == pytest.approx(8)


def test_it_gives_up_between_two_batches_when_asked_to():
    evaluate = make_evaluate(Table(), BYTE_LENGTHS_V, make_mesh(Mesh()))
    data, taken = batches(4), []

    def source():
        for number, batch in enumerate(data):
            taken.append(number)
            yield batch

    assert evaluate(jnp.zeros((V, V)), source(), lambda: len(taken) == 3) is None
    assert taken == [0, 1, 2]
