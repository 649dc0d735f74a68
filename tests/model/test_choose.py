"""Choosing a token: the filters against their definitions, the draws against their probabilities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from model.generate import Sampling
from model.generate.choose import Choice, History, choose, filter_logits

# Shuffled, so that an order by number would show.
PROBABILITIES = np.array([0.05, 0.3, 0.02, 0.15, 0.4, 0.08])
LOGITS_BV = np.log(PROBABILITIES)[None].astype(np.float32) + 7  # A constant changes nothing.
# One program for all settings, as in a decoding loop.
_filter, _choose = jax.jit(filter_logits), jax.jit(choose)


def filtered(logits_BV, sampling):
    B, V = logits_BV.shape
    return np.asarray(_filter(logits_BV, Choice.of([sampling] * B, V)))


def drawn(logits_BV, keys_B, sampling, prompt=(), written=()):
    """A token for each row, all with the same settings and the same text so far."""
    B, V = logits_BV.shape
    one = Choice.of([sampling], V, forced=4), History.of([prompt], V)
    choice, history = jax.tree.map(lambda x: np.broadcast_to(x, (B, *x.shape[1:])), one)
    counts_BV = np.broadcast_to(np.bincount(written, minlength=V).astype(np.int32), (B, V))
    place_B = np.full(B, len(written), np.int32)
    return _choose(logits_BV, keys_B, choice, history.replace(written_BV=counts_BV), place_B)


def distribution(**settings):
    """The probabilities that are drawn from."""
    exp = np.exp(filtered(LOGITS_BV, Sampling(**settings))[0].astype(np.float64))
    return exp / exp.sum()


def kept(*tokens, temperature=1.0):
    """The distribution with only these tokens left."""
    left = np.isin(np.arange(6), tokens) * PROBABILITIES ** (1 / temperature)
    return left / left.sum()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, PROBABILITIES),
        ({"temperature": 0.5}, kept(*range(6), temperature=0.5)),
        ({"temperature": 3.0}, kept(*range(6), temperature=3)),
        ({"top_k": 1}, kept(4)),
        ({"top_k": 3}, kept(4, 1, 3)),
        ({"top_k": 6}, PROBABILITIES),
        ({"top_k": 100}, PROBABILITIES),
        ({"top_p": 0.01}, kept(4)),
        ({"top_p": 0.39}, kept(4)),
        ({"top_p": 0.41}, kept(4, 1)),
        ({"top_p": 0.75}, kept(4, 1, 3)),
        ({"top_p": 0.99}, kept(0, 1, 2, 3, 4, 5)),
        ({"min_p": 0.3}, kept(4, 1, 3)),
        ({"min_p": 1.0}, kept(4)),
        # In order: of the three likeliest (0.47, 0.35, 0.18), two add up to 0.8; of all six it takes three.
        ({"top_k": 3, "top_p": 0.8}, kept(4, 1)),
        # Temperature first: at 0.5 the two likeliest are 0.89 of all, at 1 only 0.7.
        ({"temperature": 0.5, "top_p": 0.85}, kept(4, 1, temperature=0.5)),
        ({"temperature": 3.0, "min_p": 0.7}, kept(4, 1, 3, temperature=3)),
        # top-p before min-p: a min-p of 0.3 first would leave 0.47, 0.35, 0.18, of which two are enough for 0.8.
        ({"top_p": 0.8, "min_p": 0.3}, kept(4, 1, 3)),
    ],
)
def test_filters_leave_the_tokens_of_their_definition_in_proportion(settings, expected):
    np.testing.assert_allclose(distribution(**settings), expected, atol=1e-6)


def test_equal_logits_are_cut_by_mass_and_the_likeliest_always_stays():
    equal_BV = np.zeros((1, 4), np.float32)
    assert np.isfinite(filtered(equal_BV, Sampling(top_p=0.5))).sum() == 2
    assert np.isfinite(filtered(equal_BV, Sampling(top_p=1e-6))).sum() == 1
    far_BV = np.array([[0.0, 200.0, -300.0]], np.float32)
    for sampling in (Sampling(top_p=1e-6), Sampling(min_p=1.0), Sampling(top_k=1), Sampling(top_p=0.999999)):
        assert np.isfinite(filtered(far_BV, sampling))[0, 1]


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 2.0}, {"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.15}, {"top_k": 5, "top_p": 0.9}]
)
def test_draws_follow_the_distribution(settings):
    rows = 100_000
    keys_B = jax.random.split(jax.random.key(0), rows)
    tokens_B = np.asarray(drawn(np.broadcast_to(LOGITS_BV, (rows, 6)), keys_B, Sampling(**settings)))
    expected = distribution(**settings)
    counts = np.bincount(tokens_B, minlength=6)
    assert not counts[expected == 0].any()
    assert chisquare(counts[expected > 0], rows * expected[expected > 0]).pvalue > 1e-3


def test_temperature_zero_takes_the_likeliest_and_so_does_a_very_small_one():
    logits_BV = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    keys_B = jax.random.split(jax.random.key(0), 50)
    for temperature in (0, 1e-6):
        tokens_B = drawn(logits_BV, keys_B, Sampling(temperature=temperature, top_k=3, top_p=0.5))
        np.testing.assert_array_equal(tokens_B, logits_BV.argmax(-1))
        assert tokens_B.dtype == jnp.int32


def test_each_row_draws_with_its_own_key():
    logits_BV = np.zeros((64, 6), np.float32)
    same_B = jnp.repeat(jax.random.split(jax.random.key(0), 1), 64)
    assert len(set(np.asarray(drawn(logits_BV, same_B, Sampling())).tolist())) == 1
    assert len(set(np.asarray(drawn(logits_BV, jax.random.split(same_B[0], 64), Sampling())).tolist())) == 6


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -0.1}, {"temperature": float("nan")}, {"temperature": float("inf")}, {"top_k": -1},
        {"top_p": 0.0}, {"top_p": 1.1}, {"top_p": float("nan")}, {"min_p": -0.1}, {"min_p": 1.5},
    ],
)  # fmt: skip
def test_sampling_that_means_nothing_is_refused_with_flag_value_and_range(settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=rf"--{name}={value}: it must be .*\d"):
        Sampling(**settings)
