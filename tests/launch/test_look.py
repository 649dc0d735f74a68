"""What is drawn is what the network attends to while it translates what it is said to translate."""

from __future__ import annotations

import types
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, tiny

from configs import schema
from configs.convert import override
from configs.schema import ConfigError
from launch.look import check_attends, look_at, look_at_translation, read_ids, shown_pair
from model import Source, build
from model.lens.record import record
from train.data.sections import Corpus, Section
from train.data.tokenizer import make_tokenizer
from train.writing import translate

BYTES = make_tokenizer(schema.Tokenizer(source="bytes"), Corpus([], [], "", ""))
END = BYTES.end_of_text


def network(**settings: Any) -> tuple[Any, Any]:
    module = build(override(tiny(logit_scale=0.3, **settings), {"tokenizer.vocab_size": 257}))
    return module, random_params(module)


@pytest.mark.parametrize("kind", ["encoder_decoder", "lstm_encoder_decoder"])
def test_a_translation_is_looked_at_as_it_is_written(kind):
    module, params = network(network=kind)
    view = look_at_translation(module, params, BYTES, "ab c", "xy", max_tokens=9)
    assert view.alignment.keys.tokens == ["a", "b", " ", "c", "<|endoftext|>"]
    assert view.alignment.queries.tokens == ["x", "y", "<|endoftext|>"]
    assert view.read == ["<|endoftext|>", "x", "y"]
    found = record(
        module, params, jnp.array([[END, *b"xy"]], jnp.int32), ["layers/cross_attention/weights"],
        Source.of(jnp.array([[*b"ab c", END]], jnp.int32)),
    )  # fmt: skip
    np.testing.assert_array_equal(view.alignment.weights_LNTS, found["layers/cross_attention/weights"][:, 0])
    assert (view.encoder is None) == (view.decoder is None) == (kind == "lstm_encoder_decoder")
    if view.encoder is not None and view.decoder is not None:
        assert view.encoder.weights_LNTS.shape == (2, 4, 5, 5)
        assert view.decoder.weights_LNTS.shape == (2, 4, 3, 3)


def test_without_a_target_the_greedy_translation_is_looked_at():
    module, params = network(network="encoder_decoder")
    view = look_at_translation(module, params, BYTES, "ab c", max_tokens=7)
    (text,) = translate(module, params, BYTES, ["ab c"], max_tokens=7)
    again = look_at_translation(module, params, BYTES, "ab c", text, max_tokens=7) if text.isascii() else None
    written = view.alignment.queries.tokens
    assert len(written) <= 7
    assert view.alignment.weights_LNTS.shape[2] == len(written)
    if again is not None and written[-1] == "<|endoftext|>":
        assert written == again.alignment.queries.tokens


def test_an_encoder_looks_in_both_directions():
    module, params = network(network="encoder")
    look = look_at(module, params, BYTES, read_ids(BYTES, "abc"))
    assert np.triu(look.weights_LNTS, 1).any()
    assert not look.causal


def test_what_has_no_attention_is_said_to_have_none():
    check_attends(tiny(network="lstm_encoder_decoder"))
    with pytest.raises(ConfigError, match=r"--model\.network=lstm has no attention"):
        check_attends(tiny(network="lstm"))


def test_the_sentence_that_is_shown_is_held_out_and_of_middle_length():
    pairs = [Section(f"t{length}", last=True, source="x" * length) for length in (3, 40, 12, 15)]
    run: Any = types.SimpleNamespace(
        corpus=Corpus([], pairs, "", ""), tokenizer=BYTES, config=override(tiny(), {"train.score_sentences": 10})
    )
    assert shown_pair(run) == pairs[2]
    run.corpus = Corpus([], pairs[:2], "", "")
    assert shown_pair(run) == pairs[0]
