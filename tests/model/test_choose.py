"""Choosing a token: the filters against their definitions, the draws against their probabilities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from model.generate import Sampling
from model.generate.choose import Choice, History, choose, draw, filter_logits

# Shuffled, so that an order by number would show.
PROBABILITIES = np.array([0.05, 0.3, 0.02, 0.15, 0.4, 0.08])
DRAWS = 100_000
KEYS_B = jax.random.split(jax.random.key(0), DRAWS)
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


def softmax(logits):
    exp = np.exp(logits - np.max(logits))
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
        # The entropy is 1.46 nats; informations are 3.0, 1.2, 3.9, 1.9, 0.9 and 2.5: nearest are tokens 1, 3, 4, 5.
        ({"typical_p": 0.2}, kept(1)),
        ({"typical_p": 0.4}, kept(1, 3)),
        ({"typical_p": 0.5}, kept(1, 3, 4)),
        ({"typical_p": 0.9}, kept(1, 3, 4, 5)),
        ({"epsilon": 0.1}, kept(1, 3, 4)),
        ({"epsilon": 0.9}, kept(4)),
        # exp(-entropy) is 0.231: sqrt(0.3) times that is 0.127, and sqrt(0.04) times that 0.046, above 0.04.
        ({"eta": 0.3}, kept(1, 3, 4)),
        ({"eta": 0.04}, kept(0, 1, 3, 4, 5)),
        ({"eta": 0.99}, kept(1, 4)),
        # Typical after top-k: of 0.47, 0.35, 0.18 with entropy 1.03, the information of 0.35 is nearest.
        ({"top_k": 3, "typical_p": 0.3}, kept(1)),
        # Epsilon after top-k: 0.15 has become 0.18.
        ({"top_k": 3, "epsilon": 0.17}, kept(1, 3, 4)),
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


# What is drawn from after the prompt 1 and the text 3, 3, 0, with everything written out.
LOGITS = LOGITS_BV[0].astype(np.float64) - 8  # Some positive, some negative, for the penalty that looks at the sign.
STANDS, COUNTS = np.array([1, 1, 0, 1, 0, 0]), np.array([1, 0, 0, 2, 0, 0])
BIAS = np.array([0, 0, 1.5, 0, -2.0, 0])
REPEATED = np.where(STANDS == 0, LOGITS, np.where(LOGITS > 0, LOGITS / 1.5, LOGITS * 1.5))
IN_ORDER = np.where(STANDS == 0, LOGITS + BIAS, np.where(LOGITS + BIAS > 0, (LOGITS + BIAS) / 2, (LOGITS + BIAS) * 2))
CLOSED_FORMS = [
    ({}, PROBABILITIES),
    ({"temperature": 2.0}, kept(*range(6), temperature=2)),
    ({"top_k": 4}, kept(4, 1, 3, 5)),
    ({"top_p": 0.8}, kept(4, 1, 3)),
    ({"min_p": 0.15}, kept(4, 1, 3, 5)),
    ({"typical_p": 0.5}, kept(1, 3, 4)),
    ({"epsilon": 0.06}, kept(1, 3, 4, 5)),
    ({"eta": 0.3}, kept(1, 3, 4)),
    ({"top_k": 5, "top_p": 0.9}, kept(4, 1, 3, 5)),
    ({"repetition_penalty": 1.5}, softmax(REPEATED)),
    ({"presence_penalty": 0.7}, softmax(LOGITS - 0.7 * (COUNTS > 0))),
    ({"frequency_penalty": 0.4}, softmax(LOGITS - 0.4 * COUNTS)),
    ({"presence_penalty": -0.3, "frequency_penalty": 0.4}, softmax(LOGITS - 0.4 * COUNTS + 0.3 * (COUNTS > 0))),
    ({"bias": ((2, 1.5), (4, -2.0))}, softmax(LOGITS + BIAS)),
    ({"banned": (4, 0)}, kept(1, 2, 3, 5)),
    # Bias first, then the penalty; then what is cut off.
    ({"bias": ((2, 1.5), (4, -2.0)), "repetition_penalty": 2.0, "banned": (1,)},
     softmax(np.where(np.arange(6) == 1, -np.inf, IN_ORDER))),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "expected"), CLOSED_FORMS)
def test_draws_follow_the_distribution_in_closed_form(settings, expected):
    rows, keys_B = DRAWS, KEYS_B
    logits_BV = np.broadcast_to(LOGITS.astype(np.float32), (rows, 6))
    tokens_B = np.asarray(drawn(logits_BV, keys_B, Sampling(**settings), prompt=[1], written=[3, 3, 0]))
    counts = np.bincount(tokens_B, minlength=6)
    assert not counts[expected == 0].any()
    assert chisquare(counts[expected > 0], rows * expected[expected > 0]).pvalue > 1e-3


def test_rows_with_different_settings_are_drawn_as_each_alone():
    samplings = [Sampling(**settings) for settings, _ in CLOSED_FORMS]
    logits_BV = np.random.default_rng(0).normal(size=(len(samplings), 6)).astype(np.float32)
    keys_B = jax.random.split(jax.random.key(0), len(samplings))
    together = _choose(
        logits_BV,
        keys_B,
        Choice.of(samplings, 6, 4),
        History.of([[1]] * len(samplings), 6),
        np.zeros(len(samplings), np.int32),
    )
    for row, sampling in enumerate(samplings):
        alone = drawn(logits_BV[row : row + 1], keys_B[row : row + 1], sampling, prompt=[1])
        assert alone[0] == together[row]


def test_draws_from_a_large_vocabulary_follow_the_distribution_and_never_take_what_is_cut_off():
    rows, random = 20_000, np.random.default_rng(0)
    logits = random.normal(size=1000) * 2
    logits[random.random(1000) < 0.3] = -np.inf
    logits[256:512] = -np.inf  # A whole group.
    tokens_B = np.asarray(jax.jit(jax.vmap(draw, (0, None)))(
        jax.random.split(jax.random.key(1), rows), logits.astype(np.float32)
    ))  # fmt: skip
    expected = rows * softmax(logits)
    counts = np.bincount(tokens_B, minlength=1000)
    assert not counts[expected == 0].any()
    often = expected > 5
    found = [*counts[often], counts[~often].sum()]
    assert chisquare(found, [*expected[often], expected[~often].sum()]).pvalue > 1e-3


def test_filters_cut_a_large_vocabulary_where_sorting_would():
    logits_BV = np.random.default_rng(0).normal(size=(3, 1000)).astype(np.float32).round(2) * 3  # Some are equal.
    for row, p in enumerate((0.3, 0.9, 0.999)):
        found_V = np.isfinite(filtered(logits_BV, Sampling(top_p=p))[row])
        order = np.argsort(-logits_BV[row], kind="stable")
        share = softmax(logits_BV[row].astype(np.float64))[order]
        expected = order[np.cumsum(share) - share < p]
        assert set(np.flatnonzero(found_V)) == set(expected)
        kept_V = np.isfinite(filtered(logits_BV, Sampling(top_k=10 + row))[row])
        np.testing.assert_array_equal(kept_V, logits_BV[row] >= -np.sort(-logits_BV[row])[9 + row])


def test_forced_tokens_come_first_whatever_the_network_says():
    logits_BV, keys_B = np.repeat(LOGITS_BV, 2, 0), jax.random.split(jax.random.key(0), 2)
    for sampling in (Sampling(forced=(2, 0)), Sampling(forced=(2, 0), temperature=0, top_k=1)):
        assert drawn(logits_BV, keys_B, sampling).tolist() == [2, 2]
        assert drawn(logits_BV, keys_B, sampling, written=[2]).tolist() == [0, 0]
    assert drawn(logits_BV, keys_B, sampling, written=[2, 0]).tolist() == [4, 4]
    assert drawn(logits_BV, keys_B, sampling, written=[2, 0, 1, 1, 1]).tolist() == [4, 4]


def test_greedy_takes_the_likeliest_after_bias_and_penalties():
    key_B = jax.random.split(jax.random.key(0), 1)
    for settings, expected in (
        ({"banned": (4,)}, 1), ({"bias": ((2, 9.0),)}, 2), ({"frequency_penalty": 0.4}, 1),
        ({"presence_penalty": 1.0}, 1), ({"repetition_penalty": 1.1}, 1),
    ):  # fmt: skip
        sampling = Sampling(temperature=0, **settings)
        assert drawn(LOGITS_BV, key_B, sampling, prompt=[4], written=[4]).tolist() == [expected]


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
        {"typical_p": 0.0}, {"epsilon": 1.0}, {"eta": -0.1}, {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")}, {"presence_penalty": float("nan")}, {"frequency_penalty": float("inf")},
    ],
)  # fmt: skip
def test_sampling_that_means_nothing_is_refused_with_flag_value_and_range(settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=rf"--{name}={value}: it must be .*\d"):
        Sampling(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bias": ((2, float("inf")),)}, r"--bias=2:inf: .*finite"),
        ({"banned": (1, 3), "forced": (3,)}, r"--banned=3 contradicts --forced=3"),
    ],
)
def test_contradicting_tokens_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"banned": (6,)}, r"--banned=6: .*from 0 to 5"),
        ({"forced": (-1,)}, r"--forced=-1: .*from 0 to 5"),
        ({"bias": ((9, 1.0),)}, r"--bias=9: .*from 0 to 5"),
        ({"banned": tuple(range(6))}, r"--banned: all 6 tokens"),
    ],
)
def test_tokens_that_the_vocabulary_does_not_have_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Choice.of([Sampling(**settings)], 6)
