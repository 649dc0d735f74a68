"""Attention rollout is the product of Abnar & Zuidema's mixing matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tiny import random_params, random_tokens, tiny

from model import build
from model.lens.record import record
from model.lens.rollout import flow, rollout

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


def test_without_the_sink_what_looks_elsewhere_is_seen(caplog):
    """Heads that rest on the first token and look back a little: the plain product sees the first token alone."""
    T = 8
    weights_TS = 0.03 * np.eye(T, k=-1, dtype=np.float32)
    weights_TS[:, 0] += 0.97
    weights_TS[0] = np.eye(T)[0]
    weights_LBNTS = np.broadcast_to(weights_TS, (12, 1, 2, T, T))
    plain_S = np.asarray(rollout(weights_LBNTS))[0, -1]
    assert plain_S[0] > 0.99
    assert "is said to be the first token" in caplog.text
    shares_BTS = np.asarray(rollout(weights_LBNTS, without_sink=True))
    np.testing.assert_allclose(shares_BTS.sum(-1), 1, atol=1e-6)
    # Of each layer 0.03 to 1: by the binomial distribution.
    share = 0.03 / 1.03
    expected_S = [math.comb(12, back) * share**back * (1 - share) ** (12 - back) for back in range(6)]
    np.testing.assert_allclose(shares_BTS[0, -1, :1:-1], expected_S, rtol=1e-4)


def test_the_flow_through_two_layers_is_the_narrower_pipe_of_each_way():
    random = np.random.default_rng(0)
    weights_LBNTS = np.tril(random.random((2, 1, 3, 5, 5)))
    weights_LBNTS /= weights_LBNTS.sum(-1, keepdims=True)
    lower_TS, upper_TS = 0.5 * weights_LBNTS.mean(2)[:, 0] + 0.5 * np.eye(5)
    for at in (2, -1):
        expected_S = np.minimum(upper_TS[at][:, None], lower_TS).sum(0)
        np.testing.assert_allclose(flow(weights_LBNTS, at)[0], expected_S, atol=1e-6)


def test_the_flow_through_many_layers_is_that_of_the_narrowest_cut():
    """All but the token itself look at the first: what reaches it is bounded by what leaves the last."""
    weights_LBNTS = np.zeros((4, 1, 1, 3, 3))
    weights_LBNTS[..., 0] = 1
    flows_S = flow(weights_LBNTS, 2)[0]
    np.testing.assert_allclose(flows_S, [1, 0, 0.5], atol=1e-6)
