"""Tasks that are made up: what is asked can be known, nothing else is, and batch n depends on the seed and n alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

from configs import schema
from configs.convert import override
from configs.presets import preset
from train.data.copying import COPIED
from train.data.in_context import NOISE, Lookup, Regression
from train.data.lags import FAR, NEAR, WORDS
from train.data.pipeline import held_out_batches, train_batches
from train.data.sections import DataError
from train.data.sources import open_corpus
from train.data.tasks import syllables
from train.data.tokenizer import make_tokenizer

LENGTHS = {"induction": 64, "recall": 32, "recall:4": 16, "copy:8": 16, "copy:40": 48, "lags": 20}


def rows_of(source, count=40):
    """Examples of a task as (words, which of them are asked for), read as text and not by their numbers."""
    corpus = open_corpus(schema.Data(source=source, length=LENGTHS[source]))
    return [(corpus.train[i].text.split(), corpus.train.example(i).asked_T) for i in range(count)]


def known(source, words, place):
    """What has to stand at a place, from the words before it; None if they don't tell."""
    before = words[:place]
    if source == "lags":
        numbers = [syllables(WORDS).index(word) for word in before]
        return syllables(WORDS)[(numbers[-NEAR] + 3 * numbers[-FAR]) % WORDS] if place >= FAR else None
    if source.startswith("copy"):
        distance = int(source.partition(":")[2])
        return before[place - distance] if place >= distance else None
    earlier = [i for i, word in enumerate(before[:-1]) if word == before[-1]]
    return before[earlier[-1] + 1] if before and earlier else None


@pytest.mark.parametrize("source", LENGTHS)
def test_all_that_is_asked_can_be_known_and_is_right(source):
    for words, asked_T in rows_of(source):
        assert len(words) == len(asked_T) == LENGTHS[source]
        assert asked_T.any()
        for place in np.flatnonzero(asked_T):
            assert words[place] == known(source, words, int(place))


def test_repeated_words_are_all_asked_for_and_periods_are_of_every_length():
    periods = set()
    for words, asked_T in rows_of("induction", 300):
        period = words.index(words[0], 1)
        periods.add(period)
        assert len(set(words[:period])) == period
        assert asked_T.tolist() == [known("induction", words, place) is not None for place in range(len(words))]
    assert periods == set(range(8, 33))


@pytest.mark.parametrize(("source", "pairs"), [("recall", 8), ("recall:4", 4)])
def test_keys_are_asked_for_in_any_order(source, pairs):
    orders = set()
    for words, asked_T in rows_of(source):
        keys, again = words[: 2 * pairs : 2], words[2 * pairs :: 2]
        assert sorted(again) == sorted(keys)
        assert len(set(keys)) == pairs
        assert np.flatnonzero(asked_T).tolist() == list(range(2 * pairs + 1, len(words), 2))
        orders.add(tuple(keys.index(key) for key in again))
    assert len(orders) > 15


def test_between_words_and_their_copy_there_is_nothing():
    for words, asked_T in rows_of("copy:40"):
        assert set(words[COPIED:40]) == {"-"}
        assert "-" not in words[:COPIED] + words[40:]
        assert np.flatnonzero(asked_T).tolist() == list(range(40, 48))


@pytest.mark.parametrize("dimensions", [1, 2])
def test_outputs_of_a_row_lie_on_a_plane_of_its_own_but_for_noise(dimensions):
    task = Regression(dimensions, pairs=40)
    slopes, left = [], []
    for number in range(200):
        example = task.example(np.random.default_rng(number))
        assert example.asked_T.tolist() == [False, True] * 40
        first_P, word_P = example.words_T.reshape(40, 2).T
        input_P, output_P = np.divmod(word_P - len(task.inputs), len(task.outputs))
        assert (input_P == first_P).all()
        inputs_PD, outputs_P = task.inputs[input_P], task.outputs[output_P]
        inside_P = abs(outputs_P) < 6
        w_D = np.linalg.lstsq(inputs_PD[inside_P], outputs_P[inside_P])[0]
        slopes.append(w_D)
        left += list((outputs_P - inputs_PD @ w_D)[inside_P])
    assert np.square(slopes).sum(-1).mean() == pytest.approx(1, abs=0.25)
    assert np.mean(slopes) == pytest.approx(0, abs=0.2)
    # Rounding to halves adds a twelfth of the square of a half, and a fit takes some of it for slopes.
    assert np.var(left) == pytest.approx((NOISE**2 + 0.5**2 / 12) * (1 - dimensions / 40), rel=0.1)
    assert len(set(task.words)) == len(task.words) == len(task.inputs) * 26


def test_a_key_has_one_value_in_a_row_and_others_in_other_rows():
    task, tables = Lookup(8, pairs=16), []
    for number in range(50):
        example = task.example(np.random.default_rng(number))
        assert example.asked_T.tolist() == [False, True] * 16
        words = [task.words[word] for word in example.words_T]
        tables.append(dict(zip(words[::2], words[1::2], strict=True)))
        assert all(tables[-1][key] == value for key, value in zip(words[::2], words[1::2], strict=True))
    assert len({table["ba"] for table in tables if "ba" in table}) > 8


def test_reversal_is_the_source_backwards():
    corpus = open_corpus(schema.Data(source="reversal", languages="forwards-backwards"))
    lengths = set()
    for i in range(100):
        pair = corpus.train[i]
        assert pair.text.split() == pair.source.split()[::-1]
        lengths.add(len(pair.text.split()))
    assert lengths == set(range(6, 13))


@pytest.fixture(scope="module")
def run():
    config = override(preset("recall"), {"train.batch_size": 4, "data.source": "copy:24", "data.length": 36})
    corpus = open_corpus(config.data)
    return config, corpus, make_tokenizer(config.tokenizer, corpus)


def test_rows_are_examples_with_the_end_of_text_before_them(run):
    config, corpus, words = run
    (first, *_) = batches = list(held_out_batches(corpus, words, config))
    assert len(batches) == len(corpus.held_out) / 4
    for row in range(4):
        tokens = words.encode(corpus.held_out[row].text)
        assert first["inputs"][row].tolist() == [words.end_of_text, *tokens[:-1], *4 * [0]]
        assert first["targets"][row].tolist() == [*tokens, *4 * [0]]
        assert first["weights"][row, :32].tolist() == corpus.held_out.example(row).asked_T.tolist()
    assert (first["segments"] == (np.arange(36) < 32)).all()
    assert not first["weights"][:, 32:].any()


def test_batches_are_a_function_of_seed_and_step(run):
    config, corpus, words = run
    some = train_batches(corpus, words, config)
    seen = [next(some)["inputs"] for _ in range(4)]
    assert len({row.tobytes() for batch in seen for row in batch}) == 16
    again = train_batches(corpus, words, config, rows=[1, 3])
    next(again)
    state = json.loads(json.dumps(again.get_state()))
    later = train_batches(corpus, words, config, rows=[1, 3])
    later.set_state(state)
    for number in (1, 2, 3):
        np.testing.assert_array_equal(next(later)["inputs"], seen[number][[1, 3]])
    other = train_batches(corpus, words, override(config, {"train.seed": 1}))
    assert (next(other)["inputs"] != seen[0]).any()


def test_what_is_held_out_is_not_trained(run):
    _, corpus, _ = run
    held_out = {corpus.held_out[i].text for i in range(len(corpus.held_out))}
    assert not held_out & {corpus.train[i].text for i in range(2000)}


def test_all_words_are_tokens(run):
    _, corpus, words = run
    assert words.size == 17 + 2  # The end of text, and what stands for any other word.
    assert {len(words.encode(f" {word}")) for word in corpus.train.task.words} == {1}


@pytest.mark.parametrize(
    ("source", "length", "message"),
    [
        ("recall:x", 64, "'x' must be a whole number from 1 to 16"),
        ("recall:17", 64, "from 1 to 16"),
        ("regression:0", 64, "from 1 to 2"),
        ("regression:3", 64, "'3' must be a whole number from 1 to 2"),
        ("lookup:x", 64, "'x' must be a whole number from 1 to 16"),
        ("lags", 5, "nothing follows from others in rows of at most 5"),
        ("copy:7", 64, "from 8"),
        ("induction:3", 64, "induction:3 is none of"),
        ("induction", 8, "data.length=8"),
    ],
)
def test_what_cannot_be_made_up_is_refused(source, length, message):
    with pytest.raises(DataError, match=message):
        open_corpus(schema.Data(source=source, length=length))


def test_a_row_too_short_and_a_tokenizer_that_splits_words_are_refused(run):
    config, corpus, words = run
    with pytest.raises(DataError, match=r"data\.length=31 is too short .* 32 words"):
        next(held_out_batches(corpus, words, override(config, {"data.length": 31})))
    with pytest.raises(DataError, match=r"tokenizer\.source=words"):
        held_out_batches(corpus, make_tokenizer(schema.Tokenizer(source="bytes"), corpus), config)
