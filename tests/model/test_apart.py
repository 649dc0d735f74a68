"""Layers that are apart compute what the stack of them does."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, random_tokens, tiny

from model import Source, build, packed
from model.apart import set_apart
from model.generate import Sampling, beam_search, generate
from model.lens.knockout import knock_out_logits
from model.lens.places import HEADS, without_heads
from model.lens.record import record

NETWORKS = {
    "decoder": {"window": 3, "window_pattern": "LG", "position": "alibi"},
    "unrolled bfloat16": {"layers": "unroll", "dtype": "bfloat16"},
    "encoder-decoder": {"network": "encoder_decoder", "position": "relative"},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_text_and_its_probabilities_are_those_of_the_stack(name):
    module = build(tiny(**NETWORKS[name]))
    params = random_params(module)
    apart = packed.pack(module, params)
    assert set(apart["layers"]) == {"0", "1"}
    prompts = [random_tokens(5).tolist(), random_tokens(3, seed=1).tolist()]
    sources = [random_tokens(4).tolist()] * 2 if "encoder" in name else None
    settings = {"max_tokens": 6, "seeds": [0, 1], "ends": [-1], "sources": sources}
    (ours,), (stack,) = (
        generate(module, tree, prompts, Sampling(temperature=0), **settings) for tree in (apart, params)
    )
    np.testing.assert_array_equal(ours.tokens_BC, stack.tokens_BC)
    np.testing.assert_allclose(ours.logprobs_BC, stack.logprobs_BC, atol=0.1 if "16" in name else 1e-5)


def test_beams_are_those_of_the_stack():
    module = build(tiny())
    params, prompt = random_params(module), random_tokens(4).tolist()
    trees = params, packed.pack(module, params)
    (stack,), (ours,) = (beam_search(module, tree, [prompt], beams=2, max_tokens=5, ends=[-1]) for tree in trees)
    assert ours[0].tokens == stack[0].tokens
    assert ours[0].score == pytest.approx(stack[0].score, abs=1e-5)


def test_what_is_recorded_and_edited_is_that_of_the_stack():
    module = build(tiny(network="encoder_decoder"))
    params, tokens_BT = random_params(module), random_tokens(2, 6)
    source = Source.of(jnp.asarray(random_tokens(2, 5, seed=1)))
    what = ("layers/attention/weights", "layers/residual/after", "encoder/layers/attention/weights", "final")
    edits = {HEADS[0]: without_heads(2, 4, [(0, 1)]), "encoder/" + HEADS[0]: without_heads(2, 4, [(1, 3)])}
    ours, stack = (record(module, tree, tokens_BT, what, source, edits) for tree in (set_apart(params), params))
    assert ours.keys() == stack.keys()
    for name, value in stack.items():
        np.testing.assert_allclose(ours[name], value, atol=1e-5 * np.abs(value).max(), err_msg=name)
    with pytest.raises(ValueError, match="these layers are apart"):
        knock_out_logits(module, set_apart(params), tokens_BT, 3, source)


def test_an_encoder_fills_in_with_layers_apart():
    module = build(tiny(network="encoder"))
    params, tokens_BT = random_params(module), random_tokens(2, 6)
    apart = packed.pack(module, params)
    ours, stack = (np.asarray(jax.jit(module.apply)({"params": tree}, tokens_BT)) for tree in (apart, params))
    np.testing.assert_allclose(ours, stack, atol=1e-5 * np.abs(stack).max())
