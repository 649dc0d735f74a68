"""Generated sentences: only the last word decides, and what is held out was never trained."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from configs import schema
from train.data.coreference import (
    FRAMES,
    OBJECTS,
    OF_OBJECTS,
    OF_SUBJECTS,
    STORY,
    SUBJECTS,
    VERBS,
    held_out_sentences,
    open_coreference,
)
from train.data.sections import DataError
from train.data.sources import open_corpus

CONFIG = schema.Data(source="coreference", held_out=0.1)
CORPUS = open_coreference(CONFIG)


def nouns(text):
    """The subject and the object of a sentence, found without the generator."""
    words = text.rstrip(".").split()
    (subject,) = (word for word in words if word in SUBJECTS)
    (place,) = (word for word in words if word in OBJECTS)
    return subject, place


def last_word(text):
    return text.rstrip(".").split()[-1]


def test_words_of_each_kind_are_many_and_different():
    kinds = SUBJECTS, OBJECTS, VERBS, OF_SUBJECTS, OF_OBJECTS
    assert len(SUBJECTS) >= 40
    assert len(OBJECTS) >= 40
    everything = list(itertools.chain(*kinds))
    assert len(set(everything)) == len(everything)


def test_the_pair_of_the_story_is_held_out_and_so_is_the_asked_share_of_all_pairs():
    trained = {nouns(section.source) for section in CORPUS.train}
    held_out = {nouns(section.source) for section in CORPUS.held_out}
    assert (STORY.subject, STORY.object) == ("animal", "street")
    assert ("animal", "street") in held_out
    assert not trained & held_out
    assert len(held_out) == 0.1 * len(SUBJECTS) * len(OBJECTS)
    assert len(trained | held_out) == len(SUBJECTS) * len(OBJECTS)


def test_every_noun_is_trained_as_often_as_the_others_of_its_side():
    pairs = {nouns(section.source) for section in CORPUS.train}
    for side, words in enumerate((SUBJECTS, OBJECTS)):
        counts = [sum(pair[side] == word for pair in pairs) for word in words]
        assert set(counts) == {36}


def test_nothing_but_the_last_word_tells_what_it_stands_for():
    for sections in (CORPUS.train, CORPUS.held_out):
        meant: dict[str, list[str]] = {}
        for section in sections:
            beginning = section.source.rsplit(" ", 1)[0]
            meant.setdefault(beginning, []).append(section.text.split()[section.source.split().index("it")])
        for beginning, referents in meant.items():
            subject, place = nouns(beginning)
            assert sorted(referents) == sorted([subject, place] * (len(referents) // 2))


def test_the_reading_is_the_sentence_with_the_noun_that_the_last_word_fits():
    for section in [*CORPUS.held_out[:400], *CORPUS.train[:400]]:
        subject, place = nouns(section.source)
        expected = subject if last_word(section.source) in OF_SUBJECTS else place
        read, meant = section.source.split(), section.text.split()
        assert read.count("it") == 1
        assert [(a, b) for a, b in zip(read, meant, strict=True) if a != b] == [("it", expected)]


def test_frames_and_verbs_are_mixed_evenly_over_pairs_and_last_words():
    shapes = [re.compile(re.sub(r"\\{\w+\\}", r"\\w+", re.escape(frame))) for frame in FRAMES]
    for word in (*OF_SUBJECTS, *OF_OBJECTS):
        texts = [section.source for section in CORPUS.train if last_word(section.source) == word]
        frames = np.array([sum(bool(shape.fullmatch(text)) for text in texts) for shape in shapes])
        verbs = np.array([sum(f" {verb} " in text for text in texts) for verb in VERBS])
        for counts in (frames, verbs):
            assert counts.sum() == len(texts)
            assert counts.min() > 0.5 * len(texts) / len(counts)


@pytest.mark.slow
def test_each_pair_of_nouns_is_seen_in_every_frame():
    shapes = [frame.split()[0] for frame in FRAMES]
    for pair in list({nouns(section.source) for section in CORPUS.train})[:50]:
        starts = {section.source.split()[0] for section in CORPUS.train if nouns(section.source) == pair}
        assert starts == set(shapes)


def test_held_out_sentences_are_those_of_the_corpus_side_by_side():
    sentences = held_out_sentences(CONFIG)
    assert [sentence.text(word) for sentence, word in sentences] == [section.source for section in CORPUS.held_out]
    for (first, one), (second, other) in zip(sentences[::2], sentences[1::2], strict=True):
        assert first == second
        assert (first.referent(one), second.referent(other)) == (first.subject, first.object)


def test_the_story_is_the_sentence_of_the_story():
    assert STORY.text("tired") == "The animal didn't cross the street because it was too tired."
    assert STORY.section("wide").text == "The animal didn't cross the street because street was too wide."


def test_it_opens_by_name_and_is_always_the_same():
    corpus = open_corpus(CONFIG)
    assert corpus.fingerprint == CORPUS.fingerprint
    assert [section.source for section in corpus.train] == [section.source for section in CORPUS.train]
    other = open_corpus(schema.Data(source="coreference", held_out=0.2))
    assert other.fingerprint != corpus.fingerprint


@pytest.mark.parametrize("share", [0.0, 0.01, 0.99])
def test_a_share_that_leaves_no_pair_on_one_side_is_refused(share):
    with pytest.raises(DataError, match=f"--data.held_out={share}"):
        open_coreference(schema.Data(source="coreference", held_out=share))


def test_more_behind_the_name_is_refused():
    with pytest.raises(DataError, match="coreference:x"):
        open_corpus(schema.Data(source="coreference:x"))
