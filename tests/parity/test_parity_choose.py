"""Choosing as `transformers` does: the same distribution for any settings, so the same filters in the same order."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from model.generate import Sampling
from model.generate.choose import Choice, History, adjust, filter_logits

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCABULARY = 200
SETTINGS = [
    {"temperature": 0.7}, {"top_k": 11}, {"top_p": 0.8}, {"min_p": 0.05}, {"typical_p": 0.6}, {"epsilon": 0.01},
    {"eta": 0.02}, {"repetition_penalty": 1.3}, {"bias": ((3, 2.5), (4, -9.0), (150, 1.0))}, {"banned": (0, 17, 199)},
    {"temperature": 1.5, "top_k": 60, "top_p": 0.95, "min_p": 0.01, "typical_p": 0.9, "epsilon": 0.005, "eta": 0.01,
     "repetition_penalty": 1.2, "bias": ((7, 3.0),), "banned": (7, 8)},
    {"temperature": 0.6, "min_p": 0.02, "eta": 0.2, "repetition_penalty": 0.8, "bias": ((7, -3.0),)},
    {"temperature": 2.0, "top_p": 0.7, "typical_p": 0.5, "epsilon": 0.02},
]  # fmt: skip


def theirs(logits_BV, prompt_BT, settings):
    """The scores that their `generate` draws from, by the processors and the order that it chooses itself."""
    names = {"epsilon": "epsilon_cutoff", "eta": "eta_cutoff", "bias": "sequence_bias", "banned": "suppress_tokens"}
    given = {names.get(name, name): value for name, value in settings.items()}
    given["sequence_bias"] = {(token,): value for token, value in given.get("sequence_bias", ())} or None
    given["suppress_tokens"] = list(given.get("suppress_tokens", ())) or None
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    network = transformers.LlamaForCausalLM(config)
    given = {"top_k": 0, "top_p": 1.0, **given}
    generation = transformers.GenerationConfig(do_sample=True, pad_token_id=0, eos_token_id=None, **given)
    generation._eos_token_tensor = None
    processors = network._get_logits_processor(
        generation, prompt_BT.shape[1], prompt_BT, device="cpu",
    )  # fmt: skip
    return processors(prompt_BT, torch.tensor(logits_BV)).numpy()


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: " ".join(settings))
def test_the_distribution_that_is_drawn_from_is_theirs(settings):
    random = np.random.default_rng(0)
    logits_BV = (2 * random.normal(size=(3, VOCABULARY))).astype(np.float32)
    prompt_BT = random.integers(0, VOCABULARY, (3, 40))
    expected_BV = theirs(logits_BV, torch.tensor(prompt_BT), settings)
    choice = Choice.of([Sampling(**settings)] * 3, VOCABULARY)
    history = History.of(prompt_BT.tolist(), VOCABULARY)
    found_BV = np.asarray(jax.jit(lambda x_BV: filter_logits(adjust(x_BV, choice, history), choice))(logits_BV))
    assert np.isfinite(expected_BV).any(axis=-1).all()
    np.testing.assert_array_equal(np.isfinite(found_BV), np.isfinite(expected_BV))
    np.testing.assert_allclose(found_BV, expected_BV, rtol=1e-5, atol=1e-5)
