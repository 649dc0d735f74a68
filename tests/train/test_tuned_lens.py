"""The tuned lens begins as the plain lens and comes closer to what the network says in the end."""

from __future__ import annotations

import jax
import numpy as np
from tiny import random_params, random_tokens, tiny

from model import build
from model.lens.logits import logit_lens
from model.lens.record import record
from train.tuned_lens import AFTER, train_tuned_lens


def test_each_layer_comes_closer_and_the_last_is_there_already():
    module = build(tiny())
    params = random_params(module)
    batches = (random_tokens(16, 8, seed=seed) for seed in range(200))
    maps, kl_SL = train_tuned_lens(module, params, batches, steps=200, learning_rate=2e-2)
    found = record(module, params, random_tokens(16, 8, seed=0), (AFTER,))
    log_p_BTV = np.asarray(jax.nn.log_softmax(found["logits"]), np.float64)
    log_q_BTV = np.asarray(jax.nn.log_softmax(logit_lens(module, params, found[AFTER])[0]), np.float64)
    plain = (np.exp(log_p_BTV) * (log_p_BTV - log_q_BTV)).sum(-1).mean()
    assert kl_SL.shape == (200, 2)
    np.testing.assert_allclose(kl_SL[0], [plain, 0], rtol=1e-3, atol=1e-5)
    assert kl_SL[-5:, 0].mean() < 0.5 * plain
    assert kl_SL[-1, 1] < 0.1 * kl_SL[-1, 0]
    assert np.abs(maps["layers"]["translator"]["kernel"][0]).max() > 0
