"""The probability of a given text is what the network's full pass gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tiny import random_params, tiny

from configs import schema
from configs.convert import override
from configs.schema import ConfigError
from model import Source, build
from train.data.sections import Corpus
from train.data.tokenizer import Tokenizer, make_tokenizer
from train.scoring import score


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer(schema.Tokenizer(source="bytes"), Corpus([], [], "", ""))


def network(tokenizer, **settings):
    module = build(override(tiny(**{"logit_scale": 0.3, **settings}), {"tokenizer.vocab_size": tokenizer.size}))
    return module, random_params(module)


def full_pass(module, params, tokens, source=None):
    """Log-probabilities [T,V] in float64."""
    logits = np.asarray(module.apply({"params": params}, np.array([tokens], np.int32), source=source)[0], np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("prompt", ["", "ab"])
def test_every_token_has_the_probability_of_the_full_pass(tokenizer, prompt):
    module, params = network(tokenizer)
    before = tokenizer.prompt(prompt) if prompt else tokenizer.beginning
    text = tokenizer.encode("xyz é")
    scored = score(module, params, tokenizer, "xyz é", prompt=prompt, top=3)
    logprobs_TV = full_pass(module, params, [*before, *text])[len(before) - 1 : -1]
    expected = logprobs_TV[np.arange(len(text)), text]
    np.testing.assert_allclose([token.logprob for token in scored.tokens], expected, atol=1e-4)
    assert [token.id for token in scored.tokens] == text
    best_T3 = np.argsort(-logprobs_TV, axis=-1)[:, :3]
    assert [[other.id for other in token.top] for token in scored.tokens] == best_T3.tolist()
    assert scored.logprob == pytest.approx(expected.sum(), abs=1e-3)
    assert scored.perplexity == pytest.approx(math.exp(-expected.mean()), rel=1e-3)
    assert scored.bits_per_byte == pytest.approx(-expected.sum() / math.log(2) / 6, rel=1e-3)
    assert scored.to_dict()["tokens"][0]["top"][0]["id"] == int(best_T3[0, 0])


def test_a_translation_is_scored_behind_its_source(tokenizer):
    module, params = network(tokenizer, network="encoder_decoder", position="relative")
    text = tokenizer.encode("ja")
    scored = score(module, params, tokenizer, "ja", prompt="yes")
    source = Source.of(np.array([tokenizer.source("yes")], np.int32))
    logprobs_TV = full_pass(module, params, [tokenizer.start_of_target, *text], source)
    expected = logprobs_TV[np.arange(len(text)), text]
    np.testing.assert_allclose([token.logprob for token in scored.tokens], expected, atol=1e-4)
    with pytest.raises(ConfigError, match="--score needs --prompt"):
        score(module, params, tokenizer, "ja")


def test_nothing_has_no_score(tokenizer):
    with pytest.raises(ConfigError, match="--score: the text is empty"):
        score(*network(tokenizer), tokenizer, "")
