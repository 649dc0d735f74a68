"""Few-shot questions are asked fairly, and answers are counted as the network gives them."""

from __future__ import annotations

import random

import pytest
from scipy.stats import beta

from configs.schema import ConfigError
from model import build
from tests.serving import sized, words_tokenizer
from tests.tiny import random_params, tiny
from train import fewshot
from train.fewshot import TASKS, Accuracy, continuation_of, prompt_of, shot_curves
from train.word_lists import ANTONYMS, CAPITALS, FRENCH, pairs


def test_lists_have_one_answer_for_each_question():
    for lines in (CAPITALS, FRENCH, ANTONYMS):
        listed = pairs(lines)
        assert len(listed) >= 60
        assert len({question for question, _ in listed}) == len(listed)
        assert all(question and answer for question, answer in listed)
    assert ("Malaysia", "Kuala Lumpur") in pairs(CAPITALS)


def test_sums_are_right():
    assert all(eval(question) == int(answer) for question, answer in TASKS["sums"][1](random.Random(0)))


def test_a_prompt_is_examples_and_a_question_in_one_form():
    assert prompt_of("sums", [("1 + 2", "3"), ("4 + 4", "8")], "2 + 2") == "1 + 2 = 3\n4 + 4 = 8\n2 + 2 ="
    assert prompt_of("capitals", [], "Peru") == "Peru ->"


def test_what_stands_before_the_answer_ends_without_spaces():
    tokenizer = words_tokenizer()
    end, the, cat, sat = tokenizer.end_of_text, *(tokenizer.encode(word)[0] for word in (" the", " cat", " sat"))
    assert continuation_of(tokenizer, " the cat ", "sat") == ([end, the, cat], [sat])
    assert continuation_of(tokenizer, "", " sat") == ([end], [sat])


def test_curves_ask_the_same_questions_with_more_examples(monkeypatch):
    words = [(word, other) for word in ["cat", "dog", "mat"] for other in ["sat", "ran"]]
    words = [(f" {word} {number}", other) for number, (word, other) in enumerate(words)]
    seen = {}

    def likelihoods(module, params, encoded, on_done):
        seen["pairs"] = encoded
        on_done(len(encoded), len(encoded))
        return [type("Likelihood", (), {"greedy": index % 2 == 0, "logprob": -2.0})() for index in range(len(encoded))]

    monkeypatch.setitem(fewshot.TASKS, "words", (" ->", lambda generator: generator.sample(words, len(words))))
    monkeypatch.setattr(fewshot, "likelihoods", likelihoods)
    texts = []
    monkeypatch.setattr(fewshot, "continuation_of", lambda tokenizer, *text: texts.append(text) or text)
    found = shot_curves(None, None, None, ["words"], [0, 3], draws=2, questions=2, seed=5)
    assert [(one.shots, one.right, one.asked, one.by_draw) for one in found] == [
        (0, 2, 4, (0.5, 0.5)),
        (3, 2, 4, (0.5, 0.5)),
    ]
    by_draw = [texts[0:4], texts[4:8]]
    for some in by_draw:
        questions = [context for context, _ in some[:2]]
        assert [context.split("\n")[-1] for context, _ in some[2:]] == questions
        examples = some[2][0].split("\n")[:-1]
        assert len(examples) == 3
        assert not any(example.startswith(question) for example in examples for question in questions)
    assert by_draw[0] != by_draw[1]
    with pytest.raises(ConfigError, match="--questions=4"):
        shot_curves(None, None, None, ["words"], [3], draws=1, questions=4, seed=0)


def test_an_interval_is_the_exact_binomial_one():
    low, high = Accuracy("sums", 1, 7, 20, (0.35,), -1.0).interval
    assert (low, high) == pytest.approx((beta.ppf(0.025, 7, 14), beta.ppf(0.975, 8, 13)))
    assert Accuracy("sums", 1, 0, 20, (0.0,), -1.0).interval[0] == 0


def test_a_network_answers_the_questions_of_all_tasks():
    tokenizer = words_tokenizer()
    module = build(sized(tiny(), tokenizer.size))
    done = []
    found = shot_curves(
        module, random_params(module), tokenizer, list(TASKS), [1], draws=1, questions=2, seed=0,
        on_done=lambda *counts: done.append(counts),
    )  # fmt: skip
    assert [(one.task, one.asked) for one in found] == [(task, 2) for task in TASKS]
    assert done[-1] == (8, 8)
    assert all(one.logprob < 0 for one in found)
