"""Windows predict each token once, and what they cost is what the network says."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from configs.schema import ConfigError
from model import build
from tests.serving import TEXT, sized, words_tokenizer
from tests.tiny import random_params, tiny
from train.perplexity import perplexity, read_files, windows


@pytest.mark.parametrize(
    ("length", "window", "stride"), [(40, 16, 16), (40, 16, 4), (16, 16, 8), (17, 16, 1), (0, 8, 8)]
)
def test_windows_predict_each_token_once_and_are_no_longer_than_asked(length, window, stride):
    tokens = list(range(100, 100 + length))
    parts = list(windows(tokens, [7], window, stride))
    assert [token for _, predicted in parts for token in predicted] == tokens
    for context, predicted in parts:
        assert len(context) + len(predicted) - 1 <= window
        assert [*context, *predicted] == [7, *tokens][[7, *tokens].index(context[0]) :][: len(context) + len(predicted)]
    for context, _ in parts[1:-1]:
        assert len(context) == window - stride + 1


def test_what_a_text_costs_is_what_the_network_says():
    tokenizer = words_tokenizer()
    module = build(sized(tiny(), tokenizer.size))
    params, texts = random_params(module), [TEXT, " the dog sat"]
    found = perplexity(module, params, tokenizer, texts, window=16, stride=8)
    nats = 0.0
    for text in texts:
        for context, predicted in windows(tokenizer.encode(text), [tokenizer.end_of_text], 16, 8):
            padded_BT = np.zeros((1, 32), np.int32)
            padded_BT[0, : len(context) + len(predicted)] = [*context, *predicted]
            logits_TV = np.asarray(APPLY(module, params, padded_BT)[0], np.float64)[len(context) - 1 :]
            logits_TV = logits_TV[: len(predicted)]
            logprobs_TV = logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))
            nats -= logprobs_TV[np.arange(len(predicted)), predicted].sum()
    size = sum(len(text.encode()) for text in texts)
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert (found.texts, found.text_bytes) == (2, size)
    assert found.perplexity == pytest.approx(np.exp(nats / found.tokens), rel=1e-5)
    assert found.bits_per_byte * size == pytest.approx(found.bits_per_token * found.tokens)


APPLY = jax.jit(lambda module, params, tokens_BT: module.apply({"params": params}, tokens_BT), static_argnums=0)


def test_what_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "latin").write_bytes(b"\xe9")
    with pytest.raises(ConfigError, match="no such file"):
        read_files([str(tmp_path / "*.txt")])
    with pytest.raises(ConfigError, match=r"latin is no UTF-8"):
        read_files([str(tmp_path / "*")])
    module = build(tiny(position="learned"))
    for window, stride, message in ((8, 9, "stride=9"), (32, 8, "16 rows")):
        with pytest.raises(ConfigError, match=message):
            perplexity(module, {}, words_tokenizer(), [TEXT], window=window, stride=stride)
