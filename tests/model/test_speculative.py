"""Guessing ahead changes how fast a text is written, and nothing of what is written."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import scipy.stats
from tiny import VOCABULARY, random_params, random_tokens, tiny

from configs.convert import override
from configs.schema import ConfigError
from model import build
from model.generate import Draft, Lookup, Sampling, Tally, generate, speculate

PROMPTS = [random_tokens(length, seed=length).tolist() for length in (2, 9, 5)]
GREEDY = Sampling(temperature=0)


def network(seed: int = 0, vocabulary: int = VOCABULARY, **settings):
    """A module and its parameters; logits scaled down, so that it is not sure of anything."""
    module = build(override(tiny(**{"logit_scale": 0.3, **settings}), {"tokenizer.vocab_size": vocabulary}))
    return module, random_params(module, seed)


def joined(chunks):
    """All chunks as one, their arrays in a list."""
    return [np.concatenate(parts, axis=1) for parts in zip(*chunks, strict=True)]


def guesses():
    """Every way to guess: right now and then, mostly wrong, always right."""
    return {
        "lookup": Lookup(3),
        "another network": Draft(*network(seed=1, num_layers=1), 4),
        "itself": Draft(*network(), 2),
    }


@pytest.mark.parametrize("name", guesses())
def test_a_greedy_text_is_the_same_text_with_the_same_probabilities(name):
    module, params = network()
    settings = {"max_tokens": 21, "seeds": [0, 1, 2], "ends": [VOCABULARY + 1], "top": 3}
    tally = Tally()
    plain = joined(generate(module, params, PROMPTS, GREEDY, **settings))
    ours = joined(speculate(module, params, PROMPTS, GREEDY, guesses()[name], tally=tally, **settings))
    np.testing.assert_array_equal(ours[0], plain[0])
    np.testing.assert_array_equal(ours[2], plain[2])
    for number in (1, 3):
        np.testing.assert_allclose(ours[number], plain[number], atol=1e-4)
    assert 0 <= tally.kept <= tally.guessed
    if name == "itself":  # Of the last round, a guess may be left over.
        assert tally.kept >= tally.guessed - 2 * len(PROMPTS)
        assert tally.rounds == 3 * 7


def test_a_text_ends_where_it_would_without_guesses():
    module, params = network()
    settings = {"max_tokens": 24, "seeds": [0, 1, 2], "ends": [VOCABULARY + 1]}
    endless = joined(generate(module, params, PROMPTS, GREEDY, **settings))[0]
    settings["ends"] = [int(endless[0, 5]), int(endless[1, 2])]
    plain = joined(generate(module, params, PROMPTS, GREEDY, **settings))[0]
    ours = joined(speculate(module, params, PROMPTS, GREEDY, guesses()["lookup"], **settings))[0]
    for our_row, row in zip(ours, plain, strict=True):
        over = [place for place, token in enumerate(row.tolist()) if token in settings["ends"]]
        length = over[0] + 1 if over else 24
        np.testing.assert_array_equal(our_row[:length], row[:length])


@pytest.mark.parametrize(
    ("name", "sampling"),
    [
        ("lookup", Sampling()),
        ("another network", Sampling()),
        ("another network", Sampling(temperature=1.5, top_k=4, presence_penalty=0.5)),
    ],
)
def test_drawn_texts_have_the_distribution_of_the_network(name, sampling):
    """Chi-squared over all texts of three tokens, whose probabilities are computed without any of our loops."""
    V, rows = 6, 4096
    module, params = network(vocabulary=V)
    guess = Lookup(2) if name == "lookup" else Draft(*network(seed=1, vocabulary=V), 2)
    prompt = [1, 2, 1]
    settings = {"max_tokens": 3, "seeds": range(rows), "ends": [-2]}
    written = joined(speculate(module, params, [prompt] * rows, sampling, guess, **settings))[0]
    every = np.stack(np.meshgrid(*[np.arange(V)] * 3, indexing="ij"), -1).reshape(-1, 3)
    texts = np.concatenate([np.tile(prompt, (len(every), 1)), every], axis=1).astype(np.int32)
    logits = np.asarray(jax.jit(module.apply)({"params": params}, texts), np.float64)[:, 2:5]
    probability = np.ones(len(every))
    for place in range(3):
        at = logits[:, place].copy()
        for number, text in enumerate(every):
            at[number, list(set(text[:place]))] -= sampling.presence_penalty
        at /= sampling.temperature
        if sampling.top_k:
            at[at < np.sort(at)[:, -sampling.top_k][:, None]] = -np.inf
        share = np.exp(at - at.max(-1, keepdims=True))
        probability *= (share / share.sum(-1, keepdims=True))[np.arange(len(every)), every[:, place]]
    counts = np.bincount(written @ np.array([V * V, V, 1]), minlength=V**3)
    assert counts[probability == 0].sum() == 0
    order = np.argsort(probability)  # Rare texts are counted together.
    groups = np.cumsum(probability[order] * rows) // 8
    expected, found = (np.bincount(groups.astype(int), x[order]) for x in (probability * rows, counts))
    expected, found = expected[expected > 0], found[expected > 0]
    assert scipy.stats.chisquare(found, expected * found.sum() / expected.sum()).pvalue > 1e-3


def test_a_row_depends_on_its_own_prompt_and_seed_only():
    module, params = network()
    settings = {"max_tokens": 12, "ends": [VOCABULARY + 1]}
    together = joined(speculate(module, params, PROMPTS, Sampling(), Lookup(3), seeds=[5, 6, 7], **settings))[0]
    (alone,) = joined(speculate(module, params, PROMPTS[1:2], Sampling(), Lookup(3), seeds=[6], **settings))[0]
    np.testing.assert_array_equal(alone, together[1])


def test_repetition_is_looked_up():
    from model.generate.speculative import look_up

    text = np.array([[7, 1, 2, 3, 9, 9, 1, 2, 3, 0, 0, 0], [4, 5, 4, 5, 0, 0, 0, 0, 0, 0, 0, 0], [8] + [0] * 11])
    found = look_up(jax.numpy.asarray(text, np.int32), np.array([9, 4, 1], np.int32), 4)
    np.testing.assert_array_equal(found, [[9, 9, 1, 2], [4, 5, 4, 5], [8, 8, 8, 8]])


def test_what_cannot_be_guessed_ahead_is_refused():
    settings = {"max_tokens": 4, "seeds": [0], "ends": [0]}
    for wrong in ({"attention": "delta"}, {"network": "lstm"}):
        with pytest.raises(ConfigError, match="keeps each token by itself"):
            next(speculate(*network(**wrong), PROMPTS[:1], GREEDY, Lookup(2), **settings))
    with pytest.raises(ConfigError, match="its vocabulary has 9 tokens, that of --checkpoint 32"):
        next(speculate(*network(), PROMPTS[:1], GREEDY, Draft(*network(vocabulary=9), 2), **settings))
