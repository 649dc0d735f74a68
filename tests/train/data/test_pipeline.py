"""Batches: nothing is lost, nothing comes twice, and batch n depends on the seed and n alone."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import schema
from train.data.pipeline import Batch, held_out_batches, padding_efficiency, train_batches
from train.data.sections import Corpus, DataError, Section
from train.data.tokenizer import make_tokenizer

TOKENIZER = make_tokenizer(schema.Tokenizer(source="bytes"), Corpus([], [], "", ""))  # type: ignore[arg-type]
END = TOKENIZER.end_of_text

documents = st.lists(
    st.lists(st.text("ab\né😀", min_size=1, max_size=30), min_size=1, max_size=3), min_size=1, max_size=6
)


def corpus_of(parts: list[list[str]]) -> Corpus:
    """Documents as lists of sections; a section's first character is its number."""
    sections, number = [], 0
    for document in parts:
        for place, text in enumerate(document):
            sections.append(Section(chr(0x4E00 + number) + text, last=place == len(document) - 1))
            number += 1
    return Corpus(sections, sections, "", "")  # type: ignore[arg-type]


def config_of(length: int = 16, batch: int = 4, **data) -> schema.Config:
    return schema.Config(data=schema.Data(length=length, **data), train=schema.Train(batch_size=batch, seed=3))


def sequence(section: Section) -> list[int]:
    return [END, *section.text.encode(), *[END] * section.last]


def pieces_of(rows: list[Batch]) -> list[tuple[list[int], list[int]]]:
    """The segments of consecutive rows as (inputs, targets); checks what holds for every row."""
    pieces = []
    for row in rows:
        numbers = row["segments"]
        filled = int((numbers > 0).sum())
        assert (numbers[filled:] == 0).all()
        assert (row["targets"][filled:] == 0).all()
        for segment in range(1, numbers.max(initial=0) + 1):
            (places,) = np.nonzero(numbers == segment)
            assert list(places) == list(range(places[0], places[-1] + 1))
            assert list(row["positions"][places]) == list(range(len(places)))
            pieces.append((row["inputs"][places].tolist(), row["targets"][places].tolist()))
    return pieces


def sections_of(rows: list[Batch]) -> list[list[int]]:
    """The token sequences that the rows of one stream hold, put together again; the last may be unfinished."""
    found: list[list[int]] = []
    for inputs, targets in pieces_of(rows):
        assert inputs[1:] == targets[:-1]
        if inputs[0] == END:
            found.append([END])
        assert found[-1][-1] == inputs[0]  # a piece starts with the target that ended the one before it
        found[-1] += targets
    return found


def rows_of(batches: list[Batch], row: int) -> list[Batch]:
    return [{name: array[row] for name, array in batch.items()} for batch in batches]


def equal(a: Batch, b: Batch) -> bool:
    return all(np.array_equal(a[name], b[name]) and a[name].dtype == np.int32 for name in a)


@settings(deadline=None, max_examples=25)
@given(parts=documents, length=st.integers(2, 40), batch=st.sampled_from([1, 2, 4]), shuffle=st.booleans())
def test_every_token_is_a_target_once_in_an_epoch_and_none_is_padding(parts, length, batch, shuffle):
    corpus = corpus_of(parts)
    sequences = [sequence(section) for section in corpus.train]
    iterator = train_batches(corpus, TOKENIZER, config_of(length, batch, shuffle=shuffle, prefetch=0))
    # A row takes every batch-th section, so in as many as this each row is through its share of the first epoch.
    share = len(sequences) // batch + 1
    batches = [next(iterator) for _ in range(max(map(len, sequences)) * (share + 1) // length + 1)]
    assert all(padding_efficiency(batch) == 1 for batch in batches)
    streams = [sections_of(rows_of(batches, row)) for row in range(batch)]
    assert all(len(stream) > share for stream in streams)
    # Section n of the global order is section n // batch of row n % batch.
    order = [streams[n % batch][n // batch] for n in range(len(sequences))]
    assert Counter(map(tuple, order)) == Counter(map(tuple, sequences))
    if not shuffle:
        assert order == sequences


@settings(deadline=None, max_examples=50)
@given(parts=documents, length=st.integers(2, 40), batch=st.sampled_from([1, 2, 4]))
def test_held_out_text_is_covered_once_in_order(parts, length, batch):
    corpus = corpus_of(parts)
    batches = list(held_out_batches(corpus, TOKENIZER, config_of(length, batch)))
    rows = [row for both in batches for row in zip(*(both[name] for name in both), strict=True)]
    rows = [dict(zip(batches[0], row, strict=True)) for row in rows]
    assert sections_of(rows) == [sequence(section) for section in corpus.held_out]
    counted = sum(TOKENIZER.byte_lengths[one["targets"][one["segments"] > 0]].sum() for one in batches)
    assert counted == sum(len(section.text.encode()) for section in corpus.held_out)
    assert all(padding_efficiency(one) == 1 for one in batches[:-1])
    tokens = sum(len(sequence(section)) - 1 for section in corpus.held_out)
    assert padding_efficiency(batches[-1]) == pytest.approx(
        (tokens - (len(batches) - 1) * batch * length) / (batch * length)
    )


TEXT = [[f"section {number} {place}\n" * (number % 5 + 1) for place in range(3)] for number in range(20)]


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("batches_of", [train_batches, held_out_batches])
def test_the_global_batch_does_not_depend_on_the_number_of_processes(batches_of, count):
    corpus, config = corpus_of(TEXT), config_of()
    alone = batches_of(corpus, TOKENIZER, config)
    share = 4 // count
    shared = [batches_of(corpus, TOKENIZER, config, range(first, first + share)) for first in range(0, 4, share)]
    number = 0
    for number, whole in enumerate(alone):
        parts = [next(iterator) for iterator in shared]
        assert equal(whole, {name: np.concatenate([part[name] for part in parts]) for name in whole})
        if number == 60:
            break
    assert number > 30
    if batches_of is held_out_batches:
        assert [next(iterator, None) for iterator in shared] == [None] * count


def test_order_is_new_in_each_epoch_and_with_each_seed():
    corpus = corpus_of([["x"]] * 30)

    def order(seed: int) -> list[int]:
        config = dataclasses.replace(config_of(length=5, batch=1), train=schema.Train(batch_size=1, seed=seed))
        iterator = train_batches(corpus, TOKENIZER, config)  # a section is one row: 4 bytes and the end of text
        return [int.from_bytes(bytes(next(iterator)["targets"][0, :3].tolist()), "big") for _ in range(60)]

    first, second, other = order(0)[:30], order(0)[30:], order(1)
    assert sorted(first) == sorted(second) == sorted(other[:30])
    orders = [first, second, other[:30], other[30:], sorted(first)]
    assert len({tuple(one) for one in orders}) == 5
    assert order(0)[:30] == first
    assert order(-1) != other


@settings(deadline=None, max_examples=20)
@given(stop=st.integers(0, 25), ahead=st.integers(0, 5), prefetch=st.integers(0, 3))
def test_resuming_anywhere_goes_on_as_if_nothing_had_happened(stop, ahead, prefetch):
    corpus, config = corpus_of(TEXT), config_of(prefetch=prefetch)
    iterator = train_batches(corpus, TOKENIZER, config)
    for _ in range(stop):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = [next(iterator) for _ in range(10)]
    # In a new process, and in the same one after some more batches.
    fresh = train_batches(corpus, TOKENIZER, config)
    for _ in range(ahead):
        next(fresh)
    for resumed in (fresh, iterator):
        resumed.set_state(state)
        assert resumed.get_state() == state
        assert all(equal(next(resumed), batch) for batch in expected)


def test_states_of_processes_join_into_one_that_fits_any_number_of_them():
    corpus, config = corpus_of(TEXT), config_of()
    alone = train_batches(corpus, TOKENIZER, config)
    shared = [train_batches(corpus, TOKENIZER, config, rows) for rows in ([0, 1], [2, 3])]
    for _ in range(7):
        next(alone), [next(iterator) for iterator in shared]
    joined = {"rows": {row: place for iterator in shared for row, place in iterator.get_state()["rows"].items()}}
    assert joined == alone.get_state()
    with pytest.raises(DataError, match=r"rows 0, 1; this process needs \[2, 3\] as well"):
        alone.set_state(shared[0].get_state())


def test_consecutive_pieces_share_the_token_between_them():
    corpus = corpus_of([["x" * 50]])
    batches = list(held_out_batches(corpus, TOKENIZER, config_of(length=16, batch=1)))
    pieces = pieces_of([row for batch in batches for row in rows_of([batch], 0)])
    assert [len(targets) for _, targets in pieces] == [16, 16, 16, 6]
    assert all(after[0][0] == before[1][-1] for before, after in pairwise(pieces))


@pytest.mark.parametrize("batches_of", [train_batches, held_out_batches])
def test_any_rows_of_a_batch_can_be_asked_for(batches_of):
    corpus, config = corpus_of(TEXT), config_of()
    for _, whole, some in zip(
        range(8), batches_of(corpus, TOKENIZER, config), batches_of(corpus, TOKENIZER, config, [3, 1]), strict=False
    ):
        assert equal({name: array[[3, 1]] for name, array in whole.items()}, some)
