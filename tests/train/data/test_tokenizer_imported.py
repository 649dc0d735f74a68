"""Tokenizers that come with checkpoints: text comes back as the library gives it, and begins as theirs does."""

from __future__ import annotations

import codecs
import json

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from imported_tokenizers import BYTES, byte_level, sentencepiece_bpe, unigram

from train.data.sections import DataError
from train.data.tokenizer import Tokenizer

MADE = {
    "llama": (lambda: sentencepiece_bpe(prepend=True), [2], None),
    "mistral": (lambda: sentencepiece_bpe(prepend=True, metaspace=True), [2], None),
    "gemma": (lambda: sentencepiece_bpe(prepend=False), [2], None),
    "t5": (unigram, [1], 0),
    "qwen": (byte_level, [1, 0], None),
}


@pytest.fixture(scope="module", params=MADE)
def pair(request: pytest.FixtureRequest) -> tuple[Tokenizer, tokenizers.Tokenizer, str]:
    """Ours and the library's."""
    make, ends, start = MADE[request.param]
    theirs = make()
    return Tokenizer.from_json(theirs.to_str(), "it", ends, start), theirs, request.param


@settings(deadline=None)
@given(text=st.text(st.characters(codec="utf-8")) | st.text(st.sampled_from(" \n\tThequick.é中😀▁<0xA>")))
@example("  two  spaces, <0x0A> and <tool> e\u0301 ﬁ 👩‍👩‍👧 中文")
@example(" ")
def test_tokens_and_text_are_those_of_the_library(pair, text: str):
    ours, theirs, _ = pair
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode(text) == ids
    assert ours.encode_all([text]) == [ids]
    assert ours.prompt(text) == ours.source(text) == (theirs.encode(text).ids or [ours.end_of_text])
    assert ours.decode(ids) == theirs.decode(ids)


@settings(deadline=None)
@given(data=st.data())
def test_any_tokens_make_the_text_that_the_library_makes(pair, data):
    ours, theirs, _ = pair
    without_bytes = [number for number in range(ours.size) if theirs.id_to_token(number) not in BYTES]
    ids = data.draw(st.lists(st.sampled_from(without_bytes), max_size=8))
    if "\N{REPLACEMENT CHARACTER}" not in ours.decode(ids):  # Where bytes are none the two count them differently.
        assert ours.decode(ids) == theirs.decode(ids)


@settings(deadline=None)
@given(data=st.data())
def test_text_that_comes_token_by_token_is_the_text_of_all(pair, data):
    ours, _, _ = pair
    ids = data.draw(st.lists(st.integers(0, ours.size - 1), max_size=8))
    decoder, text, begun = codecs.getincrementaldecoder("utf-8")("replace"), "", False
    for id in ids:
        text += decoder.decode(ours.token_bytes(id, first=not begun))
        begun = begun or bool(ours.byte_lengths[id])
    assert text + decoder.decode(b"", final=True) == ours.decode(ids)
    assert [len(ours.token_bytes(id)) for id in ids] == ours.byte_lengths[ids].tolist()


@pytest.mark.parametrize(
    ("name", "text", "prompt", "shown"),
    [
        ("llama", "The fox", ["<s>", " The", " fox"], "The fox"),
        ("gemma", "The fox", ["<s>", "The", " fox"], "The fox"),
        ("t5", "The  fox", [" The", " fox", "</s>"], "The fox"),
        ("qwen", "The fox", ["The", " fox"], "The fox"),
    ],
)
def test_a_text_is_read_as_its_own_network_read_it(name, text, prompt, shown):
    make, ends, _ = MADE[name]
    tokenizer = Tokenizer(make(), ends=ends)
    ids = tokenizer.prompt(text)
    assert merged([tokenizer.token_text(id) for id in ids]) == merged(prompt)
    assert tokenizer.decode(ids) == shown


def merged(tokens: list[str]) -> list[str]:
    """Words, which a small vocabulary has in pieces; names of special tokens by themselves."""
    joined = "".join(f"\0{token}\0" if token in ("<s>", "</s>") else token for token in tokens)
    return [part for part in joined.split("\0") if part]


def test_what_is_said_of_the_ends_is_kept(pair):
    ours, theirs, name = pair
    again = Tokenizer.from_json(ours.to_json())
    assert again.to_json() == ours.to_json()
    for tokenizer in (ours, again):
        assert tokenizer.ends == tuple(MADE[name][1])
        assert tokenizer.end_of_text == MADE[name][1][0]
        assert tokenizer.start_of_target == (0 if name == "t5" else tokenizer.end_of_text)
        assert tokenizer.prompt("The fox") == ours.prompt("The fox")
    assert json.loads(ours.huggingface_json()).keys() == json.loads(theirs.to_str()).keys()
    assert tokenizers.Tokenizer.from_str(ours.huggingface_json()).encode("The fox").ids == ours.prompt("The fox")


def test_what_does_not_come_back_is_known(pair):
    ours, _, name = pair
    assert ours.exact == (name in ("llama", "gemma"))


def test_the_bytes_of_a_space_and_of_a_byte():
    tokenizer = Tokenizer(sentencepiece_bpe(prepend=True), ends=[2])
    ids = tokenizer.encode("The 😀")
    assert b"".join(map(tokenizer.token_bytes, ids)) == " The 😀".encode()
    assert [tokenizer.token_bytes(id) for id in ids[-4:]] == [b"\xf0", b"\x9f", b"\x98", b"\x80"]
    assert tokenizer.token_text(ids[-1]) == r"\x80"
    assert np.array_equal(tokenizer.byte_lengths[ids[-4:]], [1, 1, 1, 1])


def test_where_only_its_name_tells_the_end_it_is_an_imported_tokenizer_all_the_same():
    tokenizer = Tokenizer(unigram(), ends=())
    assert (tokenizer.end_of_text, tokenizer.prompt("The")[-1]) == (1, 1)
    assert Tokenizer.from_json(tokenizer.to_json()).prompt("The") == tokenizer.prompt("The")


def test_numbers_that_only_the_network_knows_stand_for_no_text(pair):
    ours, _, _ = pair
    beyond = ours.size + 3
    assert (ours.decode([beyond]), ours.token_bytes(beyond), ours.token_text(beyond)) == ("", b"", "")


def test_an_end_that_is_no_token_is_one_clear_error():
    with pytest.raises(DataError, match="has 301 tokens, but a text is said to end with token 99999"):
        Tokenizer(byte_level(), ends=[99999])
