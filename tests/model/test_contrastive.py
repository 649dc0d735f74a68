"""Contrastive search finds what its formula says, computed by full passes."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from tiny import VOCABULARY, random_params, random_tokens, tiny

from configs.schema import ConfigError
from model import build
from model.generate import Sampling, generate
from model.generate.contrastive import contrastive_search

PROMPTS = [random_tokens(length, seed=length).tolist() for length in (2, 9)]
NEW = 10


@pytest.fixture(scope="module")
def network():
    module = build(tiny(logit_scale=0.1))  # Smooth, so that the second term decides now and then.
    return module, random_params(module)


def by_formula(module, params, prompt, candidates, alpha, new=NEW):
    """A token at a time, each candidate read in a pass over the whole text."""
    full = jax.jit(lambda tokens_BT: module.apply({"params": params}, tokens_BT))
    hidden = jax.jit(lambda tokens_BT: module.apply({"params": params}, tokens_BT, head=False))
    length = len(prompt) + new

    def padded(texts):
        return np.array([text + [0] * (length - len(text)) for text in texts], np.int32)

    text = list(prompt)
    for _ in range(new):
        share_V = np.asarray(jax.nn.softmax(full(padded([text]))[0, len(text) - 1]))
        tokens = np.argsort(-share_V, kind="stable")[:candidates].tolist()
        read_KTD = np.asarray(hidden(padded([[*text, token] for token in tokens])))[:, : len(text) + 1]
        unit_KTD = read_KTD / np.linalg.norm(read_KTD, axis=-1, keepdims=True)
        likeness_K = np.einsum("KTD,KD->KT", unit_KTD[:, :-1], unit_KTD[:, -1]).max(axis=1)
        text.append(tokens[int(np.argmax((1 - alpha) * share_V[tokens] - alpha * likeness_K))])
    return text[len(prompt) :]


def test_it_takes_what_the_formula_says(network):
    found = contrastive_search(*network, PROMPTS, candidates=4, alpha=0.6, max_tokens=NEW, ends=[VOCABULARY])
    assert found == [by_formula(*network, prompt, 4, 0.6) for prompt in PROMPTS]
    greedy = contrastive_search(*network, PROMPTS, candidates=4, alpha=0.0, max_tokens=NEW, ends=[VOCABULARY])
    assert found != greedy
    chunks = generate(
        *network, PROMPTS, Sampling(temperature=0), max_tokens=NEW, seeds=[0, 0], ends=[VOCABULARY]
    )  # fmt: skip
    assert greedy == next(chunks).tokens_BC.tolist()


def test_a_text_ends_with_its_end(network):
    settings = {"candidates": 4, "alpha": 0.6, "max_tokens": NEW}
    text = contrastive_search(*network, PROMPTS[:1], **settings, ends=[VOCABULARY])[0]
    (ended,) = contrastive_search(*network, PROMPTS[:1], **settings, ends=[VOCABULARY, text[4]])
    assert ended == text[: text.index(text[4]) + 1]


def test_numbers_out_of_range_are_refused(network):
    for settings, message in (
        ({"candidates": 0, "alpha": 0.5}, r"--contrastive=0"), ({"candidates": 4, "alpha": 1.5}, r"--alpha=1.5"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            contrastive_search(*network, PROMPTS, **settings, max_tokens=4, ends=[VOCABULARY])
