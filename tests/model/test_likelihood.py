"""The likelihood of continuations is what a full forward pass says, however the texts share their beginnings."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from configs.schema import ConfigError
from model import build
from model.generate.likelihood import Group, grouped, likelihoods, size_of
from tests.tiny import random_params, random_tokens, tiny


def texts() -> list[tuple[list[int], list[int]]]:
    """Two prompts of examples, each with questions; each question with answers; a few texts that share nothing."""
    some = random_tokens(400).tolist()
    pairs = []
    for prompt in (some[:70], some[100:150]):
        for question in (some[200:203], some[210:219], some[230:231]):
            pairs += [(prompt + question, answer) for answer in (some[240:241], some[250:253], some[260:262])]
    pairs += [(some[300:301], some[301:390]), (some[310:330], some[330:332]), (some[311:317], some[330:331])]
    pairs.append(pairs[0])
    return pairs


def logits(module, params, tokens) -> np.ndarray:
    padded_BT = np.zeros((1, 128), np.int32)
    padded_BT[0, : len(tokens)] = tokens
    segments_BT = (np.arange(128) < len(tokens)).astype(np.int32)[None]
    return np.asarray(APPLY(module, params, padded_BT, segments_BT)[0], np.float64)[: len(tokens)]


def expected(module, params, context, continuation) -> tuple[np.ndarray, bool]:
    """By one pass over the whole text, in float64 where the logits are judged."""
    logits_TV = logits(module, params, [*context, *continuation])[len(context) - 1 : -1]
    logprobs_TV = logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))
    chosen = logprobs_TV[np.arange(len(continuation)), continuation]
    return chosen, bool((logits_TV.argmax(-1) == continuation).all())


APPLY = jax.jit(
    lambda module, params, *inputs: module.apply({"params": params}, inputs[0], None, inputs[1]), static_argnums=0
)


@pytest.mark.parametrize("network", [{}, {"network": "lstm"}])
def test_each_is_what_a_pass_over_the_whole_text_says(network):
    module = build(tiny(**network))
    params, pairs, done = random_params(module), texts(), []
    found = likelihoods(module, params, pairs, on_done=lambda *counts: done.append(counts))
    assert done == sorted(done)
    assert done[-1] == (len(pairs), len(pairs))
    for (context, continuation), likelihood in zip(pairs, found, strict=True):
        logprobs, greedy = expected(module, params, context, continuation)
        np.testing.assert_allclose(likelihood.logprobs, logprobs, atol=2e-4)
        assert likelihood.greedy == greedy
        assert likelihood.logprob == pytest.approx(logprobs.sum(), abs=1e-3)


def test_the_likeliest_continuation_is_called_so():
    module = build(tiny())
    params, context, continuation = random_params(module), random_tokens(40).tolist(), []
    for _ in range(3):
        continuation.append(int(logits(module, params, [*context, *continuation])[-1].argmax()))
    other = [*continuation[:-1], (continuation[-1] + 1) % 32]
    found = likelihoods(module, params, [(context, continuation), (context, other), (context, continuation[:1])])
    assert [likelihood.greedy for likelihood in found] == [True, False, True]


def test_groups_share_what_saves_the_most():
    a, b = tuple(range(100)), tuple(range(40)) + tuple(range(500, 600))
    contexts = [(*prompt, 1000 + number) for prompt in (a, b) for number in range(3)]
    apart = [(7, number) for number in range(4)]
    groups = grouped([*contexts, *apart])
    assert groups == [Group(100, sorted(contexts[:3])), Group(140, sorted(contexts[3:])), Group(0, sorted(apart))]
    # One context of each: what the prompts themselves share is better than nothing.
    assert grouped(contexts[::3]) == [Group(40, sorted(contexts[::3]))]


def test_sizes_are_few_and_large_enough():
    sizes = [size_of(length) for length in range(1, 2000)]
    assert all(length <= size for length, size in enumerate(sizes, 1))
    assert sorted(set(sizes)) == [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048]
    assert sorted({size_of(length, 1) for length in range(1, 33)}) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]


def test_what_cannot_be_asked_is_refused():
    module = build(tiny(position="learned"))  # with 16 rows
    with pytest.raises(ConfigError, match="17 tokens"):
        likelihoods(module, random_params(module), [([1] * 16, [1, 2])])
    encoder = build(tiny(network="encoder"))
    with pytest.raises(ConfigError, match="network=encoder does not continue"):
        likelihoods(encoder, random_params(encoder), [([1], [1])])
