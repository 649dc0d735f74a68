"""Tokens become text that is certain: characters whole, stop strings cut, each token at its place."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import schema
from launch.server.jobs import Job, Prompt
from launch.server.texts import Growing
from model.generate.engine import Token
from tests.serving import TEXT
from train.data.sections import Corpus, Section
from train.data.tokenizer import make_tokenizer

SECTIONS = [Section(TEXT, last=True)]
BYTES = make_tokenizer(schema.Tokenizer(source="bytes"), Corpus(SECTIONS, SECTIONS, "", ""))


def grown(text: str, stops=(), step=1, end=False, prompt="") -> list:
    """The pieces of a text that is written `step` bytes at a time: (text, tokens, finish)."""
    ids = [*BYTES.encode(text), *([BYTES.end_of_text] if end else [])]
    tokens = [Token(id, -1.0, ((id, -1.0),)) for id in ids]
    tokens[-1] = Token(ids[-1], -1.0, (), "end" if end else "length")
    job = Job([], [], list(stops), 1, 1, logprobs=True, echo=bool(prompt))
    growing, pieces = Growing(BYTES, Prompt([], None, prompt, begins=True), job), []
    for start in range(0, len(tokens), step):
        pieces.append(growing.add(tokens[start : start + step]))
        if pieces[-1][2]:
            break
    return pieces


def test_a_character_comes_whole_and_its_bytes_stand_where_it_does():
    pieces = grown("a猫😀", end=True)
    assert [text for text, _, _ in pieces] == ["a", "", "", "猫", "", "", "", "😀", ""]
    tokens = [token for _, tokens, _ in pieces for token in tokens]
    assert [token.offset for token in tokens] == [0, 1, 1, 1, 2, 2, 2, 2, 3]
    assert b"".join(token.bytes for token in tokens).decode() == "a猫😀"
    assert tokens[1].text == "\\xe7"
    assert tokens[-1].text == "<|endoftext|>"
    assert pieces[-1][2] == "stop"


def test_a_character_that_was_begun_last_is_left_out():
    ids = BYTES.encode("a猫")[:-1]
    growing = Growing(BYTES, Prompt([], None, "", begins=True), Job([], [], [], 1, 1, logprobs=True))
    text, tokens, finish = growing.add([Token(id, -1.0, (), "length" if id == ids[-1] else "") for id in ids])
    assert (text, len(tokens), finish) == ("a", 3, "length")


@settings(max_examples=200, deadline=None)
@given(
    text=st.text("ab猫😀", min_size=1, max_size=12),
    stops=st.lists(st.text("ab猫😀", min_size=1, max_size=3), max_size=2),
    step=st.integers(1, 5),
    end=st.booleans(),
    prompt=st.text("ab", max_size=3),
)
def test_pieces_add_up_to_the_text_before_the_first_stop_string(text, stops, step, end, prompt):
    pieces = grown(text, stops, step, end, prompt)
    found = [at for at in map(text.find, stops) if at >= 0]
    # Of what is written at once the stop string that is complete first counts; then the one that begins first.
    ends = min((text.find(stop) + len(stop) for stop in stops if stop in text), default=len(text))
    expected = min((text[:ends].find(stop) for stop in stops if stop in text[:ends]), default=len(text))
    told = "".join(piece for piece, _, _ in pieces)
    assert told == text[:expected]
    assert pieces[-1][2] == ("stop" if found or end else "length")
    tokens = [token for _, tokens, _ in pieces for token in tokens]
    if found:
        assert b"".join(token.bytes for token in tokens)[: len(told.encode())].decode(errors="ignore") == told
        assert all(token.offset < len(prompt) + len(told) for token in tokens)
    else:
        assert b"".join(token.bytes for token in tokens).decode() == text
    assert [token.offset for token in tokens] == sorted(token.offset for token in tokens)


@pytest.mark.parametrize("stop", ["x", "ab", "猫"])
def test_nothing_is_shown_that_a_stop_string_could_still_take_back(stop):
    shown = ""
    for piece, _, _ in grown("a a猫 b ab", [stop]):
        shown += piece
        assert stop not in shown
