"""Attention rollout is the product of Abnar & Zuidema's mixing matrices."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import random_params, random_tokens, tiny

from model import build
from model.lens.record import record
from model.lens.rollout import rollout

WEIGHTS = "layers/attention/weights"
TOKENS_BT = random_tokens(2, 7)


def by_hand(weights_LBNTS):
    """Layer by layer and row by row, in float64."""
    L, B, _, T, _ = weights_LBNTS.shape
    rolled_BTS = np.stack([np.eye(T)] * B)
    for layer in range(L):
        for row in range(B):
            mixed_TS = 0.5 * weights_LBNTS[layer, row].astype(np.float64).mean(0) + 0.5 * np.eye(T)
            rolled_BTS[row] = (mixed_TS / mixed_TS.sum(1)[:, None]) @ rolled_BTS[row]
    return rolled_BTS


@pytest.mark.parametrize("settings", [{"network": "encoder"}, {"network": "decoder", "attention_sinks": True}])
def test_rollout_is_the_product_over_the_layers(settings):
    module = build(tiny(num_layers=3, **settings))
    weights_LBNTS = np.asarray(record(module, random_params(module), TOKENS_BT, (WEIGHTS,))[WEIGHTS])
    rolled_BTS = np.asarray(rollout(weights_LBNTS))
    np.testing.assert_allclose(rolled_BTS, by_hand(weights_LBNTS), atol=1e-6)
    np.testing.assert_allclose(rolled_BTS.sum(-1), 1, atol=1e-6)
    if settings["network"] == "decoder":
        assert not np.triu(rolled_BTS, 1).any()


def test_heads_that_look_at_themselves_hold_themselves():
    weights_LBNTS = np.broadcast_to(np.eye(5, dtype=np.float32), (4, 1, 2, 5, 5))
    np.testing.assert_array_equal(rollout(weights_LBNTS)[0], np.eye(5))


def test_two_steps_back_take_two_layers():
    back_TS = np.eye(5, k=-1, dtype=np.float32)
    back_TS[0, 0] = 1
    weights_LBNTS = np.broadcast_to(back_TS, (2, 1, 1, 5, 5))
    np.testing.assert_allclose(rollout(weights_LBNTS)[0, 4], [0, 0, 0.25, 0.5, 0.25])
