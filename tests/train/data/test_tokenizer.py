"""Tokenizers give every text back exactly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from configs import schema
from train.data.sections import Corpus, DataError, Section
from train.data.tokenizer import END_OF_TEXT, Tokenizer, make_tokenizer

TEXTS = [
    "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n" * 3,
    "The quick brown fox jumps over the lazy dog, 1234567 times.\n" * 5,
    "Größe, naïve, 中文文本, 😀😀 and\ttabs\r\n" * 5,
]
CORPUS = Corpus([Section(text, True) for text in TEXTS], [Section("held out", True)], "", "")  # type: ignore[arg-type]
SETTINGS = {"bpe": schema.Tokenizer(vocab_size=400), "bytes": schema.Tokenizer(source="bytes")}


@pytest.fixture(scope="module", params=["bpe", "bytes", "given"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if request.param != "given":
        return make_tokenizer(SETTINGS[request.param], CORPUS)
    # A byte-level tokenizer as others make it: it normalizes, adds special tokens, truncates and pads.
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(TEXTS, vocab_size=300, special_tokens=["<s>", "</s>"], show_progress=False)
    made._tokenizer.normalizer = tokenizers.normalizers.NFC()
    made._tokenizer.post_processor = tokenizers.processors.BertProcessing(("</s>", 1), ("<s>", 0))
    made.enable_truncation(7)
    made.enable_padding(length=9)
    path = tmp_path_factory.mktemp("given") / "tokenizer.json"
    made.save(str(path))
    return make_tokenizer(schema.Tokenizer(source=str(path)), CORPUS)


@settings(deadline=None)
@given(text=st.text(st.characters(codec="utf-8")) | st.text(st.sampled_from(" \n\r\tab1<|>é\u0301\x00\x85\u2028中😀")))
@example("中文，没有空格。😀👩‍👩‍👧 e\u0301\r\n\r \t\x00\x1b\x7f\ufeff")
@example(f"a{END_OF_TEXT}b </s> <s>")
def test_every_text_comes_back_exactly(tokenizer: Tokenizer, text: str):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())
    assert tokenizer.end_of_text not in ids
    assert tokenizer.encode_all([text, "x"])[0] == ids


@settings(deadline=None)
@given(text=st.text())
def test_tokens_are_those_of_hugging_face(tokenizer: Tokenizer, text: str):
    theirs = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    text = text.encode(errors="ignore").decode().replace(END_OF_TEXT, "")
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == theirs.decode(ids)


def test_json_gives_the_same_tokenizer(tokenizer: Tokenizer):
    again = Tokenizer.from_json(tokenizer.to_json())
    assert (again.size, again.end_of_text) == (tokenizer.size, tokenizer.end_of_text)
    assert (again.byte_lengths == tokenizer.byte_lengths).all()
    for text in (*TEXTS, f"a {END_OF_TEXT} b"):
        assert again.encode(text) == tokenizer.encode(text)
    assert again.to_json() == tokenizer.to_json()


def test_end_of_text_stands_for_no_text(tokenizer: Tokenizer):
    assert tokenizer.byte_lengths[tokenizer.end_of_text] == 0
    assert tokenizer.decode([*tokenizer.encode("a"), tokenizer.end_of_text, *tokenizer.encode("b")]) == "ab"
    assert tokenizer.token_text(tokenizer.end_of_text) in (END_OF_TEXT, "</s>")


def test_a_document_begins_after_the_end_of_another(tokenizer: Tokenizer):
    old = json.loads(tokenizer.to_json())
    old["post_processor"] = None  # As runs were saved that others have not seen.
    for again in (tokenizer, Tokenizer.from_json(tokenizer.to_json()), Tokenizer.from_json(json.dumps(old))):
        assert again.prompt("a b") == [tokenizer.end_of_text, *tokenizer.encode("a b")]
        assert again.prompt("") == [tokenizer.end_of_text]
        assert again.source("a b") == [*tokenizer.encode("a b"), tokenizer.end_of_text]
        assert (again.start_of_target, again.ends[0]) == (tokenizer.end_of_text, tokenizer.end_of_text)
    theirs = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    assert theirs.encode("a b").ids == tokenizer.prompt("a b")


def test_ours_are_exact(tokenizer: Tokenizer):
    assert tokenizer.exact
    assert tokenizer.mask is None


@pytest.mark.parametrize("source", ["bpe", "bytes", "words"])
def test_a_token_for_what_has_to_be_filled_in(source):
    config = schema.Tokenizer(source=source, vocab_size=400)
    tokenizer = make_tokenizer(config, CORPUS, masked=True)
    assert tokenizer.mask is not None
    assert tokenizer.mask != tokenizer.end_of_text
    assert (tokenizer.token_text(tokenizer.mask), tokenizer.byte_lengths[tokenizer.mask]) == ("<|mask|>", 0)
    assert tokenizer.mask not in tokenizer.encode("<|mask|>")
    assert Tokenizer.from_json(tokenizer.to_json()).mask == tokenizer.mask


def test_words_are_tokens_and_those_never_seen_are_one():
    tokenizer = make_tokenizer(schema.Tokenizer(source="words"), CORPUS)
    ids = tokenizer.encode("The lazy dog, naïve fox")
    assert [tokenizer.token_text(id) for id in ids] == ["The", " lazy", " dog", ",", " naïve", " fox"]
    assert tokenizer.decode(ids) == "The lazy dog, naïve fox"
    (known, unknown), (other,) = tokenizer.encode("The unicorn"), tokenizer.encode("elephant")
    assert known == ids[0]
    assert unknown == other
    assert tokenizer.token_text(unknown) == "<|unknown|>"
    assert not tokenizer.exact


def test_bytes_are_their_own_numbers():
    tokenizer = make_tokenizer(SETTINGS["bytes"], CORPUS)
    assert tokenizer.encode("aé\n") == list("aé\n".encode())
    assert (tokenizer.size, tokenizer.end_of_text) == (257, 256)


def test_bpe_learns_words_indentation_and_short_numbers():
    tokenizer = make_tokenizer(SETTINGS["bpe"], CORPUS)
    pieces = [tokenizer.token_bytes(number) for number in tokenizer.encode("):\n    return the 1234567")]
    assert pieces[:3] == [b"):", b"\n    ", b"return"]
    assert max(len(piece.strip()) for piece in pieces if piece.strip().isdigit()) <= 3


def test_a_small_text_teaches_fewer_tokens_than_asked():
    tokenizer = make_tokenizer(schema.Tokenizer(vocab_size=4096), CORPUS)
    assert 300 < tokenizer.size < 4096
    assert make_tokenizer(schema.Tokenizer(vocab_size=300), CORPUS).size == 300
    assert len(tokenizer.byte_lengths) == tokenizer.size


def test_bpe_is_the_same_in_every_process():
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_tokenizer as t\n"
        "sys.stdout.write(t.make_tokenizer(t.SETTINGS['bpe'], t.CORPUS).to_json())"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert other == make_tokenizer(SETTINGS["bpe"], CORPUS).to_json()


def test_tokens_are_shown_on_one_line():
    tokenizer = make_tokenizer(SETTINGS["bytes"], CORPUS)
    assert [tokenizer.token_text(byte) for byte in b"a \n\t\x00\xe4"] == ["a", " ", "\n", "\t", "\x00", r"\xe4"]


def word_level() -> str:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "</s>": 1, "?": 2}, unk_token="?"))
    made.add_special_tokens(["</s>"])
    return made.to_str()


def without_end() -> str:
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(TEXTS, special_tokens=["<unk>"], show_progress=False)
    return made.to_str()


def with_prefix_space() -> str:
    made = tokenizers.ByteLevelBPETokenizer(add_prefix_space=True)
    made.train_from_iterator(TEXTS, special_tokens=["</s>"], show_progress=False)
    return made.to_str()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a tokenizer.json"),
        (json.dumps({"model": 3}), "is not a tokenizer.json"),
        (word_level(), "is neither byte-level nor in the manner of SentencePiece: its decoder is none"),
        (with_prefix_space(), "does not give text back exactly"),
        (without_end(), r"has no end-of-text token: its special tokens are \['<unk>'\]"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_one_clear_error(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(DataError, match=f"--tokenizer.source={path} {message}"):
        make_tokenizer(schema.Tokenizer(source=str(path)), CORPUS)


def test_a_tokenizer_that_does_not_exist_is_one_clear_error():
    with pytest.raises(
        DataError, match=r"--tokenizer.source=bep is neither bpe, nor bytes, nor words, nor a tokenizer.json"
    ):
        make_tokenizer(schema.Tokenizer(source="bep"), CORPUS)
