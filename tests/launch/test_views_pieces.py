"""Tokens are shown as the characters that they make up, and no weight is lost on the way."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import pytest

from configs import schema
from configs.schema import ConfigError
from launch.views.packed import packed
from launch.views.pieces import Pieces, ends_at, merged
from tests.launch.test_views_attention import causal_weights
from train.data.sections import Corpus
from train.data.tokenizer import make_tokenizer

BYTES = make_tokenizer(schema.Tokenizer(source="bytes"), Corpus([], [], "", ""))
END = BYTES.end_of_text


def pieces(ids: list[int]) -> Pieces:
    return Pieces.of(BYTES, ids)


@pytest.mark.parametrize(
    ("ids", "texts", "starts"),
    [
        ([END, *"a我b".encode()], ["<|endoftext|>", "a", "我", "b"], [0, 1, 2, 5]),
        (list("😀".encode()), ["😀"], [0]),
        (list("我".encode())[:2], ["\N{REPLACEMENT CHARACTER}"], [0]),  # A text that ends within a character.
        ([*list("我".encode())[:1], END, 97], ["\N{REPLACEMENT CHARACTER}<|endoftext|>", "a"], [0, 2]),
        ([0x80, 97], ["\N{REPLACEMENT CHARACTER}", "a"], [0, 1]),  # No character begins like this.
    ],
)
def test_bytes_stand_together_until_they_are_characters(ids, texts, starts):
    found = pieces(ids)
    assert (list(found.texts), list(found.starts)) == (texts, starts)
    assert found.split == (len(texts) < len(ids))
    assert found.counts().sum() == len(ids) == len(found.tokens)


@pytest.mark.parametrize(("word", "piece"), [("it", 5), ("animal", 2), ("wa", 6), ("was", 6), ("我", 9), ("it was", 6)])
def test_a_word_is_found_by_name_whole_ones_first_and_the_last_of_several(word, piece):
    assert ends_at(word, ["The", " an", "imal", " it", "alian", " it", " was", " wi", "de", "我", "国"]) == piece


def test_a_word_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(ConfigError, match=r"--word=cat is not in the text; its words are The, animal, didn't, it\."):
        ends_at("cat", ["The", " animal", " didn", "'t", " it", " it"])


def test_rows_between_characters_are_shares_too():
    found = pieces([END, *"a我b国".encode()])
    weights_LNTS = causal_weights(2, 3, len(found.tokens))
    merged_LNPQ = merged(weights_LNTS, found, found)
    assert merged_LNPQ.shape == (2, 3, 5, 5)
    np.testing.assert_allclose(merged_LNPQ.sum(-1), 1, atol=1e-6)
    assert not np.triu(merged_LNPQ, 1).any()
    # What 国, tokens 6 to 8, reads of 我, tokens 2 to 4.
    np.testing.assert_allclose(merged_LNPQ[..., 4, 2], weights_LNTS[..., 6:, 2:5].sum(-1).mean(-1), rtol=1e-6)


@pytest.mark.parametrize("causal", [True, False])
def test_packed_weights_are_a_byte_each_and_come_back_within_an_eye(causal):
    weights_LNTS = causal_weights(2, 3, 7) if causal else np.random.default_rng(0).dirichlet(np.ones(7), (2, 3, 5))
    levels = np.frombuffer(zlib.decompress(base64.b64decode(packed(weights_LNTS, causal))), np.uint8)
    T, S = weights_LNTS.shape[2:]
    there_TS = np.tri(T, dtype=bool) if causal else np.ones((T, S), bool)
    assert levels.size == 6 * there_TS.sum()
    np.testing.assert_allclose((levels.reshape(2, 3, -1) / 255) ** 2, weights_LNTS[..., there_TS], atol=0.004)
