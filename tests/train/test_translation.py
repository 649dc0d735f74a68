"""Scores of translations are sacreBLEU's, and the models that a network must beat are as strong as said."""

from __future__ import annotations

import numpy as np
import pytest

from configs import schema
from train.data.sections import Corpus, Section
from train.data.tokenizer import make_tokenizer
from train.translation import EM_ITERATIONS, Dictionary, baselines, held_out_pairs, model_1, score


def corpus_of(pairs: list[tuple[str, str]]) -> Corpus:
    sections = [Section(target, last=True, source=source) for source, target in pairs]
    return Corpus(sections, sections, "", "")  # type: ignore[arg-type]


def test_scores_are_those_of_the_papers_formulas():
    hypotheses, references = ["the cat sat on the mat today"], ["the cat sat on a mat today ."]
    result = score(hypotheses, references, ("de", "en"))
    # n-grams that match, of those there are, by hand; and the brevity penalty for 7 words against 8.
    precisions = np.array([6 / 7, 4 / 6, 2 / 5, 1 / 4])
    assert result["bleu"] == pytest.approx(100 * np.exp(1 - 8 / 7) * precisions.prod() ** 0.25)
    assert result["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert result["chrf_signature"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")
    same = score(references, references, ("de", "en"))
    assert (same["bleu"], same["chrf"]) == (pytest.approx(100), pytest.approx(100))


def test_chinese_is_compared_by_characters():
    hypothesis, reference = ["请选择一个单元格并点击确定"], ["请选择一个单元格，然后点击确定"]
    chinese = score(hypothesis, reference, ("en", "zh"))
    assert "tok:zh" in chinese["bleu_signature"]
    assert chinese["bleu"] > 50
    assert score(hypothesis, reference, ("zh", "en"))["bleu"] < 1  # one word, another one


def test_texts_without_a_reference_each_are_an_error():
    with pytest.raises(ValueError, match="1 hypotheses cannot be compared with 2 references"):
        score(["a"], ["a", "b"], ("en", "de"))
    with pytest.raises(ValueError, match="0 references"):
        score([], [], ("en", "de"))


def test_held_out_pairs_are_spread_and_always_the_same():
    corpus = corpus_of([(f"source {n}", f"target {n}") for n in range(100)])
    chosen = held_out_pairs(corpus, 5)
    assert [pair.text for pair in chosen] == [f"target {n}" for n in (0, 24, 49, 74, 99)]
    assert len(held_out_pairs(corpus, 1000)) == 100
    assert held_out_pairs(corpus_of([("", "a"), ("b", "")]), 5) == []


def model_1_by_the_book(pairs: list[tuple[list[int], list[int]]]) -> dict[tuple[int, int], float]:
    """Figure 3.3 of Koehn's "Statistical Machine Translation", with dictionaries."""
    likely = {(s, t): 1.0 for source, target in pairs for s in source for t in target}
    for _ in range(EM_ITERATIONS):
        count = dict.fromkeys(likely, 0.0)
        for source, target in pairs:
            for t in target:
                total = sum(likely[s, t] for s in source)
                for s in source:
                    count[s, t] += likely[s, t] / total
        totals = {s: sum(c for (other, _), c in count.items() if other == s) for s, _ in likely}
        likely = {(s, t): count[s, t] / totals[s] for s, t in likely}
    return likely


def test_model_1_is_as_in_the_book():
    generator = np.random.default_rng(0)
    pairs = [
        tuple(generator.integers(0, 9, generator.integers(1, 7)).tolist() for _ in range(2))  # tokens may come twice
        for _ in range(30)
    ]
    probability_U, source_U, target_U = model_1(pairs, vocab_size=9)  # type: ignore[arg-type]
    expected = model_1_by_the_book(pairs)  # type: ignore[arg-type]
    assert list(zip(source_U.tolist(), target_U.tolist(), strict=True)) == sorted(expected)
    np.testing.assert_allclose(probability_U, [expected[key] for key in sorted(expected)], rtol=1e-12)
    assert np.bincount(source_U, probability_U) == pytest.approx(np.ones(9))


def test_the_dictionary_finds_the_word_that_stems_from_each():
    words = {"x": "u", "y": "v", "z": "w"}
    generator = np.random.default_rng(1)
    sources = ["".join(generator.choice(list(words), 2)) for _ in range(200)]
    corpus = corpus_of([(text, "".join(words[c] for c in reversed(text)) + ".") for text in sources])
    tokenizer = make_tokenizer(schema.Tokenizer(source="bytes"), corpus)
    dictionary = Dictionary.train(corpus, tokenizer)
    assert dictionary.translate(["xyz", "q"]) == ["uvw", "q"]  # in the order of the source; what is unknown is copied


def test_baselines_are_scored_on_the_given_pairs():
    corpus = corpus_of(
        [("eins zwei drei vier", "one two three four"), ("vier drei zwei eins", "four three two one")] * 9
    )
    tokenizer = make_tokenizer(schema.Tokenizer(vocab_size=300), corpus)
    pairs = held_out_pairs(corpus, 2)
    result = baselines(corpus, tokenizer, pairs, ("de", "en"))
    references = [pair.text for pair in pairs]
    assert result["copy"] == score([pair.source for pair in pairs], references, ("de", "en"))
    hypotheses = Dictionary.train(corpus, tokenizer).translate([pair.source for pair in pairs])
    assert result["dictionary"] == score(hypotheses, references, ("de", "en"))
    assert result["copy"]["bleu"] < 1
