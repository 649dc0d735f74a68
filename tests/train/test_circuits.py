"""What is said of heads, of probabilities and of repeats agrees with what can be computed by hand."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, random_tokens, tiny

from configs import schema
from model import build
from model.lens.record import record
from train.checkpoint import Restored
from train.circuits import loss_on_repeats, repeated_tokens, strongest
from train.data.sections import Corpus
from train.data.tokenizer import make_tokenizer
from train.distribution import calibration, distinct
from train.induction import ABLATIONS, Induction, asked_for, previous_token_heads, steepest_rise, without

CONFIG = dataclasses.replace(tiny(), tokenizer=schema.Tokenizer(source="bytes", vocab_size=257))
MODULE = build(CONFIG)
TOKENIZER = make_tokenizer(CONFIG.tokenizer, Corpus([], [], "", ""))  # type: ignore[arg-type]
NETWORK = Restored(CONFIG, random_params(MODULE), TOKENIZER, 0)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )


def test_loss_on_repeats_is_that_of_the_second_half_but_its_first_token():
    tokens_BT = repeated_tokens(NETWORK, rows=2, length=6)
    assert (tokens_BT[:, :6] == tokens_BT[:, 6:]).all()
    assert TOKENIZER.end_of_text not in tokens_BT
    logits_BTV = MODULE.apply({"params": NETWORK.params}, jnp.asarray(tokens_BT))
    expected = -np.mean([log_softmax(logits_BTV)[b, t - 1, tokens_BT[b, t]] for b in range(2) for t in range(7, 12)])
    assert loss_on_repeats(NETWORK, tokens_BT) == pytest.approx(expected, rel=1e-5)
    every = [(layer, head) for layer in range(2) for head in range(4)]
    assert abs(loss_on_repeats(NETWORK, tokens_BT, every) - expected) > 0.01


def test_only_what_is_asked_for_counts():
    random = np.random.default_rng(0)
    logits, targets = random.normal(size=(2, 5, 7)).astype(np.float32), random.integers(7, size=(2, 5))
    weights = np.array([[0, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
    loss, accuracy = asked_for(logits, {"targets": targets.astype(np.int32), "weights": weights})
    places = list(zip(*np.nonzero(weights), strict=True))
    assert loss == pytest.approx(-np.mean([log_softmax(logits)[b, t, targets[b, t]] for b, t in places]), rel=1e-5)
    assert accuracy == pytest.approx(np.mean([logits[b, t].argmax() == targets[b, t] for b, t in places]))


def test_heads_are_told_by_their_scores_and_the_steepest_rise_is_found():
    assert strongest(np.array([[0.1, 0.9], [0.5, 0.2]]), 3) == [(0, 1), (1, 0), (1, 1)]
    best = [0.0, 0.1, 0.2, 0.75, 0.8]
    seen = [Induction(100 * n, 0.0, 0.0, [[0.05, 0.3], [0.0, 0.1]], [[0.0], [score]]) for n, score in enumerate(best)]
    assert previous_token_heads(seen[0]) == [(0, 1), (1, 1)]
    assert steepest_rise(seen, within=200) == (pytest.approx(0.65), 100, 300)
    assert steepest_rise(seen, within=100) == (pytest.approx(0.55), 200, 300)


def test_heads_are_taken_out_in_each_way():
    inputs_BT = random_tokens(2, 6)
    inputs_BT[:, 4:] = inputs_BT[:, :2]  # So that rows differ, and something is to be read.
    batch = {"inputs": inputs_BT, "targets": np.roll(inputs_BT, -1, 1), "weights": np.ones((2, 6), np.int32)}
    plain = asked_for(MODULE.apply({"params": NETWORK.params}, jnp.asarray(inputs_BT)), batch)[0]
    losses = {kind: without(NETWORK, batch, [(0, 1), (1, 2)], kind) for kind in ABLATIONS}
    assert len({round(loss, 5) for loss in [plain, *losses.values()]}) == 5
    for kind in ("another row", "even"):
        assert without(NETWORK, batch, [], kind) == pytest.approx(plain, rel=1e-5)
    alike = {name: x[:1].repeat(2, 0) for name, x in batch.items()}
    assert without(NETWORK, alike, [(0, 1)], "another row") == pytest.approx(without(NETWORK, alike, []), rel=1e-5)


def test_calibration_counts_how_often_the_likeliest_token_comes():
    tokens_BT = random_tokens(3, 9, seed=1)
    places = np.broadcast_to(np.arange(8, dtype=np.int32), (3, 8))
    batch = {"inputs": tokens_BT[:, :-1], "targets": tokens_BT[:, 1:], "positions": places}
    batch["segments"] = (places < np.array([[8], [5], [8]])).astype(np.int32)
    logits_BTV = record(MODULE, NETWORK.params, jnp.asarray(batch["inputs"]), ())["logits"]
    probability_BT = np.exp(log_softmax(logits_BTV)).max(-1)[batch["segments"] > 0]
    right_BT = (np.asarray(logits_BTV).argmax(-1) == batch["targets"])[batch["segments"] > 0]
    found = calibration(MODULE, NETWORK.params, [batch])
    assert sum(found.tokens) == 21
    for number in range(10):
        here = (probability_BT * 10).astype(int) == number
        assert found.tokens[number] == here.sum()
        if here.any():
            assert found.probability[number] == pytest.approx(probability_BT[here].mean(), rel=1e-4)
            assert found.right[number] == pytest.approx(right_BT[here].mean())
    gaps = [abs(p - r) * n for n, p, r in zip(found.tokens, found.probability, found.right, strict=True)]
    assert found.error == pytest.approx(sum(gaps) / 21)


def test_distinct_is_the_share_of_different_runs():
    assert distinct([[1, 2, 1, 2, 1]], 2) == 0.5
    assert distinct([[1, 2, 3, 4], [1, 1, 1, 1], [1]], 2) == pytest.approx((1 + 1 / 3) / 2)
    assert np.isnan(distinct([[1]], 2))
