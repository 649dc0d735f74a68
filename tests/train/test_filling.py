"""Gaps are filled in with the likeliest tokens, and what is no gap stays as it is."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, tiny

from configs import schema
from configs.convert import override
from model import build
from train.data.sections import Corpus, DataError, Section
from train.data.tokenizer import MASK, make_tokenizer
from train.filling import fill_in, gapped_ids

CORPUS = Corpus([Section("the cat sat on the mat. the dog sat on the cat.", True)], [], "", "")
WORDS = make_tokenizer(schema.Tokenizer(source="words"), CORPUS, masked=True)
BYTES = make_tokenizer(schema.Tokenizer(source="bytes"), CORPUS, masked=True)


def test_a_gap_is_one_mask_and_takes_the_space_before_it():
    assert gapped_ids(WORDS, f"the {MASK} sat on{MASK} mat.") == [
        *WORDS.prompt("the"), WORDS.mask, *WORDS.encode(" sat on"), WORDS.mask, *WORDS.encode(" mat."),
    ]  # fmt: skip
    assert gapped_ids(BYTES, f"{MASK}{MASK}") == [BYTES.end_of_text, BYTES.mask, BYTES.mask]
    assert gapped_ids(WORDS, "the cat") == WORDS.prompt("the cat")


def test_gaps_get_the_likeliest_tokens_that_are_text():
    config = override(tiny(network="encoder"), {"tokenizer.vocab_size": WORDS.size})
    module = build(config)
    params = random_params(module)
    text = f"the {MASK} sat on the {MASK}."
    ids = gapped_ids(WORDS, text)
    logits_TV = np.array(module.apply({"params": params}, jnp.array([ids]))[0])
    logits_TV[:, WORDS.byte_lengths == 0] = -np.inf
    best = [int(logits_TV[place].argmax()) if id == WORDS.mask else id for place, id in enumerate(ids)]
    assert fill_in(module, params, WORDS, text) == WORDS.decode(best)
    assert fill_in(module, params, WORDS, "the cat sat.") == "the cat sat."


def test_a_tokenizer_without_a_mask_is_refused():
    plain = make_tokenizer(dataclasses.replace(schema.Tokenizer(), source="bytes"), CORPUS)
    with pytest.raises(DataError, match=r"<\|mask\|>"):
        gapped_ids(plain, f"a {MASK}")
