"""Decoding with a cache writes what the full forward pass would, row by row."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from tiny import VOCABULARY, random_params, random_tokens, tiny

from configs.convert import override
from configs.schema import ConfigError
from model import build
from model.generate import Chunk, Sampling, generate
from model.generate.decode import CHUNK

NETWORKS = {
    "rope": {},
    "rope, window, unrolled": {
        "window": 4, "window_pattern": "LG", "layers": "unroll", "rope_scaling": "ntk", "rope_scaling_factor": 2.0,
        "qk_norm": "head",
    },
    "learned, post": {"position": "learned", "norm_position": "post", "norm": "layer", "max_length": 64},
    "sinusoidal, both, fused": {"position": "sinusoidal", "norm_position": "both", "kernel": "fused", "biases": True},
    "alibi, window, fused": {"position": "alibi", "window": 3, "kernel": "fused", "attention": "mqa"},
    "none, sinks, softcap": {"position": "none", "attention_sinks": True, "attention_softcap": 3.0},
    "rope, bfloat16, window": {"dtype": "bfloat16", "param_dtype": "bfloat16", "window": 6},
}  # fmt: skip
PROMPTS = [random_tokens(length, seed=length).tolist() for length in (2, 9, 5)]
NEVER = VOCABULARY + 1  # As the end of a text, a token that is never drawn.
NEW = 2 * CHUNK + 4
PLAIN = Sampling(temperature=4)  # At 1 these networks are so sure that every text is the same.


def run(module, params, prompts=PROMPTS, seeds=(5, 6, 7), sampling=PLAIN, max_tokens=NEW, end=NEVER, top=0):
    """All chunks of a text as one, and how many there were."""
    settings = {"max_tokens": max_tokens, "seeds": seeds, "ends": [end], "top": top}
    chunks = list(generate(module, params, prompts, sampling, **settings))
    return Chunk(*(np.concatenate(parts, axis=1) for parts in zip(*chunks, strict=True))), len(chunks)


@pytest.mark.parametrize("name", NETWORKS)
def test_cached_decoding_gives_the_probabilities_of_the_full_forward_pass(name):
    module = build(tiny(**NETWORKS[name]))
    params = random_params(module)
    written, _ = run(module, params, top=VOCABULARY)
    assert written.tokens_BC.shape == (3, NEW)
    assert written.tokens_BC.max() < VOCABULARY

    longest = max(map(len, PROMPTS)) + NEW
    texts_BT = np.zeros((3, longest), np.int32)  # What stands behind a text is not seen.
    for row, prompt in enumerate(PROMPTS):
        texts_BT[row, : len(prompt) + NEW] = [*prompt, *written.tokens_BC[row]]
    logprobs_BTV = np.asarray(jax.jit(lambda t: jax.nn.log_softmax(module.apply({"params": params}, t)))(texts_BT))

    # bfloat16 rounds to 1 part in 256; the logits reach 20, and both ways round at other places.
    tolerance = 0.75 if "bfloat16" in name else 3e-4
    for row, prompt in enumerate(PROMPTS):
        full_CV = logprobs_BTV[row, len(prompt) - 1 : len(prompt) - 1 + NEW]
        cached_CV = np.zeros_like(full_CV)
        np.put_along_axis(cached_CV, written.top_tokens_BCK[row], written.top_logprobs_BCK[row], axis=1)
        np.testing.assert_allclose(cached_CV, full_CV, atol=tolerance)
        chosen_C = np.take_along_axis(cached_CV, written.tokens_BC[row][:, None], 1)[:, 0]
        np.testing.assert_array_equal(written.logprobs_BC[row], chosen_C)
        assert np.all(np.diff(written.top_logprobs_BCK[row]) <= 0)


@pytest.fixture(scope="module")
def network():
    module = build(tiny(window=6, window_pattern="LG"))
    return module, random_params(module)


def test_a_row_depends_on_its_own_prompt_and_seed_only(network):
    together, _ = run(*network)
    assert all(len(set(row)) > 10 for row in together.tokens_BC.tolist()), "nothing is drawn"
    order = [2, 0, 1]
    reordered, _ = run(*network, [PROMPTS[row] for row in order], [(5, 6, 7)[row] for row in order])
    np.testing.assert_array_equal(reordered.tokens_BC, together.tokens_BC[order])
    alone, _ = run(*network, PROMPTS[1:2], [6])
    np.testing.assert_array_equal(alone.tokens_BC, together.tokens_BC[1:2])
    other, _ = run(*network, seeds=(5, 600, 7))
    same_B = (other.tokens_BC == together.tokens_BC).all(-1)
    np.testing.assert_array_equal(same_B, [True, False, True])


def test_any_whole_number_is_a_seed(network):
    found = [run(*network, [PROMPTS[0]] * 3, seeds)[0].tokens_BC for seeds in ((-1, 0, 2**31), (2**32 - 1, 1, 2**40))]
    # Modulo 2**32 they are four.
    assert len({tuple(row) for row in np.concatenate(found).tolist()}) == 4


def test_a_longer_text_begins_with_the_shorter_one(network):
    long, chunks = run(*network, max_tokens=2 * CHUNK + 1)
    assert long.tokens_BC.shape == (3, 2 * CHUNK + 1)
    assert chunks == 3
    for length in (1, CHUNK, CHUNK + 3):
        short, _ = run(*network, max_tokens=length)
        np.testing.assert_array_equal(short.tokens_BC, long.tokens_BC[:, :length])


def test_greedy_takes_the_likeliest_token_whatever_the_seed(network):
    greedy, _ = run(*network, sampling=Sampling(temperature=0), top=1)
    np.testing.assert_array_equal(greedy.tokens_BC, greedy.top_tokens_BCK[..., 0])
    again, _ = run(*network, sampling=Sampling(temperature=0), top=1, seeds=(1, 2, 3))
    np.testing.assert_array_equal(greedy.tokens_BC, again.tokens_BC)


def test_probabilities_are_those_before_temperature_and_filters(network):
    plain, _ = run(*network, sampling=Sampling(temperature=0), top=1)
    filtered, _ = run(*network, sampling=Sampling(temperature=5, top_k=1), top=1)
    np.testing.assert_array_equal(filtered.tokens_BC, plain.tokens_BC)
    np.testing.assert_allclose(filtered.logprobs_BC, plain.logprobs_BC, atol=1e-5)
    assert plain.logprobs_BC.min() < -0.1


def test_the_end_token_ends_a_row_and_all_rows_end_the_text(network):
    endless, chunks = run(*network, max_tokens=3 * CHUNK)
    assert chunks == 3
    row, place = 1, 4
    end = int(endless.tokens_BC[row, place])
    stopped, chunks = run(*network, max_tokens=3 * CHUNK, end=end)
    for ours, theirs in zip(stopped.tokens_BC, endless.tokens_BC, strict=True):
        ends = np.flatnonzero(theirs == end)
        upto = ends[0] + 1 if len(ends) else len(theirs)
        np.testing.assert_array_equal(ours[:upto], theirs[: len(ours)][:upto])
        assert np.all(ours[upto:] == end)
    alone, chunks = run(*network, PROMPTS[row : row + 1], [6], max_tokens=3 * CHUNK, end=end)
    assert chunks == 1
    assert np.flatnonzero(alone.tokens_BC[0] == end)[0] <= place


def test_prompts_that_cannot_be_continued_are_refused(network):
    for prompts in ([], [[1, 2], []]):
        with pytest.raises(ValueError, match="at least one token"):
            run(*network, prompts, [0] * len(prompts))


def test_a_text_ends_where_a_learned_position_table_does_and_a_longer_prompt_is_refused():
    module = build(override(tiny(position="learned"), {"data.length": 16}))
    params = random_params(module)
    written, _ = run(module, params, max_tokens=NEW)
    assert written.tokens_BC.shape[1] == 16 - max(map(len, PROMPTS))
    with pytest.raises(ConfigError, match=r"17 tokens.*16 rows"):
        next(generate(module, params, [[1] * 17], PLAIN, max_tokens=8, seeds=[0], ends=[NEVER]))
