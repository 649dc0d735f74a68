"""Masked rows: what is hidden is asked for, nothing else is, and the choice depends on the seed and the place alone."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from configs import schema
from configs.check import check
from configs.convert import override
from configs.schema import Config, ConfigError, Data, Model, Train
from train.data.coreference import OBJECTS, SUBJECTS, open_coreference
from train.data.masking import MaskedStream, TokenizedReadings
from train.data.pipeline import held_out_batches, train_batches
from train.data.sections import Corpus, DataError, Section
from train.data.tokenizer import make_tokenizer

TEXTS = [f"text {number}: " + "abcdefgh" * (number % 7 + 1) for number in range(40)]
CORPUS = Corpus([Section(text, True) for text in TEXTS], [Section(text[::-1], True) for text in TEXTS], "", "")
TOKENIZER = make_tokenizer(schema.Tokenizer(source="bytes"), CORPUS, masked=True)
CONFIG = Config(model=Model(network="encoder"), data=Data(length=24), train=Train(batch_size=4))


def some(config, count, corpus=CORPUS, tokenizer=TOKENIZER, rows=None):
    batches = train_batches(corpus, tokenizer, config, rows)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


def joined(batches):
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def test_what_is_read_is_the_target_wherever_nothing_is_asked():
    rows = joined(some(CONFIG, 20))
    assert all(array.dtype == np.int32 for array in rows.values())
    free = rows["weights"] == 0
    np.testing.assert_array_equal(rows["inputs"][free], rows["targets"][free])
    assert set(np.unique(rows["weights"])) == {0, 1}


def test_chosen_tokens_are_masked_replaced_and_kept_in_the_shares_of_bert():
    rows = joined(some(override(CONFIG, {"data.length": 64, "train.batch_size": 32}), 20))
    words = (rows["segments"] != 0) & (TOKENIZER.byte_lengths[rows["targets"]] > 0)
    asked = rows["weights"] == 1
    assert not (asked & ~words).any()  # Neither padding nor the end of text is asked for.
    count, chosen = words.sum(), asked.sum()
    assert abs(chosen / count - 0.15) < 4 * np.sqrt(0.15 * 0.85 / count)
    read, meant = rows["inputs"][asked], rows["targets"][asked]
    for share, expected in (
        ((read == TOKENIZER.mask).mean(), 0.8),
        (((read != TOKENIZER.mask) & (read != meant)).mean(), 0.1 * 255 / 256),
        ((read == meant).mean(), 0.1 + 0.1 / 256),
    ):
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / chosen)
    assert TOKENIZER.end_of_text not in read


def test_each_token_of_the_text_is_read_once_in_an_epoch():
    rows = joined(list(held_out_batches(CORPUS, TOKENIZER, CONFIG)))
    real = rows["segments"] != 0
    expected = [token for text in TEXTS for token in TOKENIZER.prompt(text[::-1])]
    assert rows["targets"][real].tolist() == expected


def test_texts_that_fit_into_a_row_are_not_cut_and_positions_restart():
    rows = joined(list(held_out_batches(CORPUS, TOKENIZER, override(CONFIG, {"data.length": 70}))))
    begins = (rows["positions"] == 0) & (rows["segments"] != 0)
    assert begins.sum() == len(TEXTS)
    assert (rows["targets"][begins] == TOKENIZER.end_of_text).all()
    for segments, positions in zip(rows["segments"], rows["positions"], strict=True):
        for segment in np.unique(segments[segments > 0]):
            np.testing.assert_array_equal(positions[segments == segment], np.arange((segments == segment).sum()))


def test_the_same_seed_asks_the_same_and_another_asks_otherwise():
    first, again = joined(some(CONFIG, 3)), joined(some(CONFIG, 3))
    other = joined(some(override(CONFIG, {"train.seed": 1, "data.shuffle": False}), 3))
    unshuffled = joined(some(override(CONFIG, {"data.shuffle": False}), 3))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    np.testing.assert_array_equal(other["targets"], unshuffled["targets"])
    assert (other["weights"] != unshuffled["weights"]).any()


def test_each_epoch_asks_for_other_tokens():
    config = override(CONFIG, {"data.shuffle": False, "data.length": 70, "train.batch_size": 1})
    one = Corpus(CORPUS.train[6:7], CORPUS.held_out, "", "")  # A text that fills its row.
    rows = joined(some(config, 8, corpus=one))
    assert (rows["targets"] == rows["targets"][:1]).all()
    assert len({weights.tobytes() for weights in rows["weights"]}) == 8


def test_how_many_processes_read_changes_nothing():
    alone = joined(some(CONFIG, 5))
    shares = [some(CONFIG, 5, rows=rows) for rows in ([0, 1], [2, 3])]
    together = joined([joined([share[step] for share in shares]) for step in range(5)])
    for name in alone:
        np.testing.assert_array_equal(alone[name], together[name])


def test_a_restored_place_goes_on_with_the_same_batches():
    batches = train_batches(CORPUS, TOKENIZER, CONFIG)
    for _ in range(4):
        next(batches)
    place, expected = batches.get_state(), [next(batches) for _ in range(3)]
    batches.close()
    restored = train_batches(CORPUS, TOKENIZER, CONFIG)
    restored.set_state(place)
    for batch in expected:
        again = next(restored)
        for name in batch:
            np.testing.assert_array_equal(batch[name], again[name])
    restored.close()


def test_held_out_text_is_judged_with_the_same_gaps_whatever_the_seed():
    first, other = (
        joined(list(held_out_batches(CORPUS, TOKENIZER, override(CONFIG, {"train.seed": seed})))) for seed in (0, 1)
    )
    for name in first:
        np.testing.assert_array_equal(first[name], other[name])
    assert first["weights"].sum() > 100


def test_pronouns_are_asked_for_and_read_as_they_are_and_the_causal_twin_gets_the_same():
    data = Data(source="coreference", length=40, held_out=0.1, masked=0.0)
    config = dataclasses.replace(CONFIG, data=data)
    corpus = open_coreference(data)
    words = make_tokenizer(schema.Tokenizer(source="words"), corpus, masked=True)
    rows = joined(some(config, 10, corpus, words))
    asked = rows["weights"] == 1
    (it,) = words.encode(" it")
    assert (rows["inputs"][asked] == it).all()
    assert asked.sum() == (rows["inputs"] == it).sum() > 40
    sentences = {words.decode(words.prompt(section.text)): section for section in corpus.train}
    for inputs, targets, segments in zip(rows["inputs"], rows["targets"], rows["segments"], strict=True):
        for segment in np.unique(segments[segments > 0]):
            section = sentences[words.decode(targets[segments == segment].tolist())]
            assert words.decode(inputs[segments == segment].tolist()) in (section.source, section.text)
    twin = joined(some(override(config, {"model.network": "decoder"}), 10, corpus, words))
    for name in rows:
        np.testing.assert_array_equal(rows[name], twin[name])


def test_pronouns_are_never_masked():
    data = Data(source="coreference", length=40, held_out=0.1, masked=0.9)
    corpus = open_coreference(data)
    words = make_tokenizer(schema.Tokenizer(source="words"), corpus, masked=True)
    rows = joined(some(dataclasses.replace(CONFIG, data=data), 10, corpus, words))
    nouns = {words.encode(f" {noun}")[0] for noun in (*SUBJECTS, *OBJECTS)}
    (because,), (it,) = words.encode(" because"), words.encode(" it")
    after = np.roll(rows["targets"], 1, axis=1)  # What stands before each token.
    pronouns = (after == because) & np.isin(rows["targets"], list(nouns)) & (rows["positions"] > 0)
    assert pronouns.sum() > 40
    assert (rows["inputs"][pronouns] == it).all()
    assert (rows["weights"][pronouns] == 1).all()


def test_a_reading_of_another_length_is_refused():
    readings = TokenizedReadings([Section("the animal", True, source="it")], TOKENIZER)
    with pytest.raises(DataError, match="'it' has 2 tokens and 'the animal' has 10"):
        readings[0]


def test_a_tokenizer_without_a_mask_is_refused():
    plain = make_tokenizer(schema.Tokenizer(source="bytes"), CORPUS)
    with pytest.raises(DataError, match=r"<\|mask\|>"):
        MaskedStream(lambda _: None, CONFIG.data, plain, 0, 1)  # type: ignore[arg-type, return-value]


def test_an_encoder_with_nothing_to_fill_in_is_refused():
    with pytest.raises(ConfigError, match=r"--data\.masked=0"):
        check(override(CONFIG, {"data.masked": 0.0}))
    check(override(CONFIG, {"data.masked": 0.0, "model.network": "decoder"}))
