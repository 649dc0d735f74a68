"""Layers with a window keep no more than it: texts and probabilities are those of the full pass, past several wraps."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from tiny import random_params, random_tokens, tiny

from model import build, packed
from model.generate import Engine, Lookup, Request, Sampling, generate, speculate
from model.generate.cache import PIECE, empty_cache, ring_slots

WINDOW, NEW = 30, 180
PROMPTS = [random_tokens(length, seed=length).tolist() for length in (2 * PIECE + 9, 7)]
GREEDY = Sampling(temperature=0)
NETWORKS = {
    "all layers, stacked": {"position": "learned", "max_length": 512},
    "one of three, apart": {"num_layers": 3, "window_pattern": "GLG", "position": "alibi"},
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    """A network, its parameters in the form of the case, and texts that it wrote with their log-probabilities."""
    module = build(tiny(window=WINDOW, logit_scale=0.3, **NETWORKS[request.param]))
    params = random_params(module)
    params = packed.pack(module, params) if "apart" in request.param else params
    chunks = list(generate(module, params, PROMPTS, GREEDY, max_tokens=NEW, seeds=[0, 0], ends=[-1]))
    tokens_BC, logprobs_BC = (np.concatenate([chunk[part] for chunk in chunks], axis=1) for part in (0, 1))
    return module, params, tokens_BC, logprobs_BC


def test_texts_and_probabilities_are_those_of_the_full_pass(network):
    module, params, tokens_BC, logprobs_BC = network
    ring = ring_slots(module.config, 512, apart="0" in params["layers"])
    assert 0 < 2 * ring < len(PROMPTS[0]) + NEW, "the longest text has to wrap more than once"
    forward = jax.jit(lambda tokens_BT: jax.nn.log_softmax(module.apply({"params": params}, tokens_BT)))
    for prompt, tokens_C, logprobs_C in zip(PROMPTS, tokens_BC, logprobs_BC, strict=True):
        text_T = np.array([*prompt, *tokens_C], np.int32)
        padded_T = np.pad(text_T, (0, len(PROMPTS[0]) + NEW - len(text_T)))
        full_CV = np.asarray(forward(padded_T[None])[0])[len(prompt) - 1 : len(text_T) - 1]
        np.testing.assert_allclose(logprobs_C, np.take_along_axis(full_CV, tokens_C[:, None], 1)[:, 0], atol=1e-4)
        np.testing.assert_array_equal(tokens_C, full_CV.argmax(-1))


def test_the_engine_and_its_prefix_cache_write_the_same(network):
    module, params, tokens_BC, _ = network
    engine = Engine(module, params, slots=2, length=512)
    found: dict[int, list[int]] = {}
    for prompts in (PROMPTS, PROMPTS[:1]):  # The second time, the first two pieces are copied.
        tickets = [engine.submit(Request(tuple(prompt), GREEDY, max_tokens=NEW)) for prompt in prompts]
        while engine.busy:
            for event in engine.step():
                found.setdefault(event.ticket, []).extend(token.id for token in event.tokens)
        for ticket, tokens_C in zip(tickets, tokens_BC.tolist(), strict=False):
            assert found[ticket] == tokens_C
    assert engine.stats.prefix_hits == 2 * PIECE


def test_guessing_ahead_writes_the_same(network):
    module, params, tokens_BC, _ = network
    chunks = speculate(module, params, PROMPTS, GREEDY, Lookup(6), max_tokens=NEW, seeds=[0, 0], ends=[-1])
    found_BC = np.concatenate([chunk.tokens_BC for chunk in chunks], axis=1)
    np.testing.assert_array_equal(found_BC, tokens_BC)


def test_memory_grows_with_the_length_only_where_a_layer_has_no_window():
    def size(config, slots, apart):
        shapes = jax.eval_shape(lambda: empty_cache(config, 4, slots, ring=ring_slots(config, slots, apart)))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    everywhere, some = tiny(window=WINDOW), tiny(window=WINDOW, window_pattern="LG")
    assert size(everywhere, 512, False) == size(everywhere, 4096, False) == size(tiny(), 128, False)
    assert size(some, 4096, True) == (size(tiny(), 4096, True) + size(tiny(), 128, True)) / 2
    assert size(some, 4096, False) == size(tiny(), 4096, False)  # Stacked layers keep equally much.
    assert size(tiny(window=WINDOW, position="relative"), 4096, True) == size(tiny(), 4096, True)


def test_more_tokens_at_once_than_a_ring_takes_are_refused():
    module = build(tiny(window=WINDOW))
    cache = jax.eval_shape(lambda: empty_cache(module.config, 1, 512, ring=ring_slots(module.config, 512, False)))
    with pytest.raises(ValueError, match="A ring of 128 slots for a window of 30 takes 99 tokens, not 100"):
        jax.eval_shape(
            lambda params, cache: module.apply({"params": params, "cache": cache}, random_tokens(1, 100)),
            random_params(module), cache,
        )  # fmt: skip
