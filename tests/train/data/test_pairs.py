"""Pairs: packed whole, each once, source and target side by side; and never judged on what was trained on."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import schema
from train.baselines import baselines
from train.data.pairs import LOOK_AHEAD, hold_out_unseen, languages, tell_left_out, text_number
from train.data.pipeline import Batch, held_out_batches, padding_efficiency, train_batches
from train.data.sections import Corpus, DataError, Section
from train.data.sources import open_corpus
from train.data.tokenizer import make_tokenizer

TOKENIZER = make_tokenizer(schema.Tokenizer(source="bytes"), Corpus([], [], "", ""))  # type: ignore[arg-type]
END = TOKENIZER.end_of_text
LENGTH, SOURCE_LENGTH = 16, 12

texts = st.text("ab\né汉", min_size=1, max_size=9)
some_pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=40)


def corpus_of(pairs: list[tuple[str, str]]) -> Corpus:
    sections = [Section(target, last=True, source=source) for source, target in pairs]
    return Corpus(sections, sections, "", "")  # type: ignore[arg-type]


def config_of(batch: int = 4, **data) -> schema.Config:
    data = {"length": LENGTH, "source_length": SOURCE_LENGTH, "languages": "en-de"} | data
    return schema.Config(data=schema.Data(**data), train=schema.Train(batch_size=batch, seed=3))


def fits(pair: tuple[str, str]) -> bool:
    source, target = (len(text.encode()) + 1 for text in pair)
    return source <= SOURCE_LENGTH and target <= LENGTH


def pairs_of(batches: list[Batch], row: int | None = None) -> list[tuple[str, str]]:
    """The pairs in the rows of some batches; checks what holds for every row."""
    found = []
    for batch in batches:
        for number in range(len(batch["inputs"])) if row is None else [row]:
            one = {name: array[number] for name, array in batch.items()}
            for segment in range(1, one["segments"].max(initial=0) + 1):
                places, source_places = (np.nonzero(one[f"{side}segments"] == segment)[0] for side in ("", "source_"))
                assert list(places) == list(range(places[0], places[-1] + 1))
                assert list(one["positions"][places]) == list(range(len(places)))
                assert list(one["source_positions"][source_places]) == list(range(len(source_places)))
                inputs, targets = one["inputs"][places].tolist(), one["targets"][places].tolist()
                source = one["source"][source_places].tolist()
                assert [*inputs, END] == [END, *targets]
                assert source[-1] == END
                found.append((TOKENIZER.decode(source), TOKENIZER.decode(targets)))
            assert set(one["source_segments"]) - {0} == set(one["segments"]) - {0}
            for side in ("inputs", "targets", "positions"):
                assert (one[side][one["segments"] == 0] == 0).all()
            assert (one["source"][one["source_segments"] == 0] == 0).all()
    return found


@settings(deadline=None, max_examples=40)
@given(pairs=some_pairs, batch=st.sampled_from([1, 2, 4]))
def test_every_held_out_pair_that_fits_comes_once(pairs, batch):
    batches = list(held_out_batches(corpus_of(pairs), TOKENIZER, config_of(batch)))
    assert Counter(pairs_of(batches)) == Counter(filter(fits, pairs))
    assert all(
        one["inputs"].shape == (batch, LENGTH) and one["source"].shape == (batch, SOURCE_LENGTH) for one in batches
    )
    assert all(array.dtype == np.int32 for one in batches for array in one.values())


@settings(deadline=None, max_examples=10)
@given(pairs=some_pairs.filter(lambda pairs: all(map(fits, pairs))), shuffle=st.booleans())
def test_every_pair_is_trained_on_once_in_an_epoch(pairs, shuffle):
    iterator = train_batches(corpus_of(pairs), TOKENIZER, config_of(1, shuffle=shuffle, prefetch=0))
    epochs = 3
    found = []
    while len(found) < epochs * len(pairs) + LOOK_AHEAD:
        found += pairs_of([next(iterator) for _ in range(8)])
    for epoch in range(1, epochs + 1):
        # A pair may be put off or drawn forward by no more than what is looked at ahead.
        begun, done = (Counter(found[: max(0, epoch * len(pairs) + ahead)]) for ahead in (-LOOK_AHEAD, LOOK_AHEAD))
        assert all(begun[pair] <= epoch * times <= done[pair] for pair, times in Counter(pairs).items())


TEXT = [(f"pair {n}"[: 3 + n % 6], f"{n} Paar {n}"[: 1 + n % 13]) for n in range(150)]


def equal(a: Batch, b: Batch) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("batches_of", [train_batches, held_out_batches])
def test_the_global_batch_does_not_depend_on_the_number_of_processes(batches_of):
    corpus, config = corpus_of(TEXT), config_of()
    alone = batches_of(corpus, TOKENIZER, config)
    shared = [batches_of(corpus, TOKENIZER, config, rows) for rows in ([0, 1], [2, 3])]
    for _, whole in zip(range(30), alone, strict=False):
        parts = [next(iterator) for iterator in shared]
        assert equal(whole, {name: np.concatenate([part[name] for part in parts]) for name in whole})
    assert next(shared[0], None) is None or batches_of is train_batches


@pytest.mark.parametrize("stop", [0, 1, 17])
def test_resuming_anywhere_goes_on_as_if_nothing_had_happened(stop):
    corpus, config = corpus_of(TEXT), config_of(prefetch=2)
    iterator = train_batches(corpus, TOKENIZER, config)
    for _ in range(stop):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = [next(iterator) for _ in range(10)]
    fresh = train_batches(corpus, TOKENIZER, config)
    next(fresh)
    fresh.set_state(state)
    assert all(equal(next(fresh), batch) for batch in expected)


def test_looking_ahead_fills_rows_that_the_next_pair_would_leave_half_empty():
    corpus = corpus_of([("a" * 7, "b" * 9), ("a" * 3, "b" * 5)] * 30)  # neither two of the first, nor of each
    batches = list(held_out_batches(corpus, TOKENIZER, config_of(1)))
    assert [padding_efficiency(batch) for batch in batches[:20]] == [1.0] * 20  # 8 + 4 of 12, 10 + 6 of 16
    assert padding_efficiency({name: np.zeros((1, 4)) for name in ("segments", "source_segments")}) == 0


def test_pairs_that_fit_in_no_row_are_left_out_and_counted():
    pairs = [("ab", "cd")] * 3 + [("a" * 12, "b")]
    corpus, config = corpus_of(pairs), config_of(1)
    assert pairs_of(list(held_out_batches(corpus, TOKENIZER, config))) == pairs[:3]
    told = tell_left_out(corpus, TOKENIZER, config.data)
    assert told.startswith("25.0% of the pairs to learn from and 25.0% of those held out are left out")
    assert "more than 11 tokens in en (--data.source_length) or 15 in de" in told
    assert tell_left_out(corpus_of(pairs[:3]), TOKENIZER, config.data) == ""


def test_no_pair_that_fits_is_one_clear_error():
    iterator = train_batches(corpus_of([("a" * 12, "b")]), TOKENIZER, config_of(1, prefetch=0))
    with pytest.raises(DataError, match=r"none of 10000 pairs fits into --data.source_length=12 and --data.length=16"):
        next(iterator)


def test_what_is_translated_is_as_long_as_the_translation_unless_told():
    batch = next(held_out_batches(corpus_of([("a", "b")]), TOKENIZER, config_of(1, source_length=0)))
    assert batch["source"].shape == (1, LENGTH)


def test_what_is_held_out_shares_no_text_with_what_is_trained_on():
    pairs = [("a", "1"), ("b", "2"), ("a", "3"), ("c", "2"), ("d", "a"), ("e", "5"), ("e", "5")]
    texts_N2 = np.array([[text_number(text) for text in pair] for pair in pairs])
    chosen_N = np.array([False, False, True, True, True, True, True])
    # The source of the third and the target of the fourth were trained on, and as a source what the fifth becomes.
    assert hold_out_unseen(chosen_N, texts_N2, "x").tolist() == [False] * 5 + [True] * 2
    with pytest.raises(DataError, match=r"--data.source=x: all pairs that could be held out"):
        hold_out_unseen(chosen_N[:5], texts_N2[:5], "x")


def test_bpe_learns_from_both_sides():
    corpus = corpus_of([("kangaroo", "袋鼠")] * 50)
    tokenizer = make_tokenizer(schema.Tokenizer(vocab_size=300), corpus)
    assert len(tokenizer.encode("kangaroo")) == 1
    assert len(tokenizer.encode("袋鼠")) == 1


def test_n_gram_baselines_predict_the_targets():
    corpus = corpus_of([("source", "target")] * 3)
    without = dataclasses.replace(corpus, train=[Section("target", True)] * 3, held_out=[Section("target", True)] * 3)
    assert baselines(corpus, TOKENIZER) == baselines(without, TOKENIZER)


@pytest.mark.parametrize("names", ["", "en", "en-", "en-en", "en-de-fr"])
def test_languages_that_are_not_two_are_one_clear_error(names):
    with pytest.raises(DataError, match=r"--data.languages.* must name two languages for --data.source=tsv:x.*en-de"):
        open_corpus(schema.Data(source="tsv:x", languages=names))
    assert languages(schema.Data(languages="de-zh_TW")) == ("de", "zh_TW")


def test_languages_of_a_source_without_pairs_are_one_clear_error():
    with pytest.raises(DataError, match=r"--data.languages=en-de: --data.source=text:x holds no pairs.*tfds:.*tsv:"):
        open_corpus(schema.Data(source="text:x", languages="en-de"))
