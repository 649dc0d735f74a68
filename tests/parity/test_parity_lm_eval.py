"""EleutherAI's lm-eval, over HTTP, finds what the network itself says."""

from __future__ import annotations

import json
import os

import jax
import numpy as np
import pytest

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}  # The tasks are files of ours.
lm_eval = pytest.importorskip("lm_eval")

from lm_eval.tasks import TaskManager  # noqa: E402

from tests.serving import running, tiny_serving  # noqa: E402

QUESTIONS = [
    {"question": " the cat sat on a", "choices": [" mat", " dog shadow", " 垫"], "answer": 0},
    {"question": " another dog run from", "choices": [" its own", " raining", " and saw"], "answer": 1},
    {"question": " 猫 坐 在", "choices": [" 上", " 垫 子", " was"], "answer": 2},
]
SHARED = """
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
"""
CHOOSING = """
task: choosing
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list: [{metric: acc}]
"""
ROLLING = """
task: rolling
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}]
"""
WRITING = """
task: writing
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: ""
generation_kwargs: {until: [" the"], max_gen_toks: 12, temperature: 0}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def serving():
    return tiny_serving()


@pytest.fixture(scope="module")
def results(serving, tmp_path_factory):
    """What the harness found for each task: the questions in their order, with the answers it got."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)), encoding="utf-8")
    for name, task in (("choosing", CHOOSING), ("rolling", ROLLING), ("writing", WRITING)):
        text = task + SHARED.replace("FILE", str(folder / "questions.jsonl"))
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    with running(serving) as url:
        found = lm_eval.simple_evaluate(
            "local-completions",
            model_args=f"base_url={url}/v1/completions,model=tiny,max_length=96,num_concurrent=4,max_retries=1",
            tasks=["choosing", "rolling", "writing"],
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            log_samples=True,
            bootstrap_iters=0,
        )
    return {task: sorted(samples, key=lambda sample: sample["doc_id"]) for task, samples in found["samples"].items()}


def judged(serving, ids, start):
    """Log-probability of ids[start:] after what is before them, and whether each of them was the likeliest."""
    logits_TV = serving.module.apply({"params": serving.params}, np.array([ids], np.int32))[0]
    logprobs_TV = np.asarray(jax.nn.log_softmax(logits_TV))[start - 1 : -1]
    written = ids[start:]
    return logprobs_TV[np.arange(len(written)), written].sum(), bool((logprobs_TV.argmax(-1) == written).all())


def test_choices_are_as_likely_as_the_network_says(serving, results):
    encode = serving.tokenizer.encode
    assert [len(sample["resps"]) for sample in results["choosing"]] == [3, 3, 3]
    for sample, asked in zip(results["choosing"], QUESTIONS, strict=True):
        for ((logprob, greedy),), choice in zip(sample["resps"], asked["choices"], strict=True):
            question = encode(asked["question"])
            expected = judged(serving, question + encode(choice), len(question))
            assert float(logprob) == pytest.approx(expected[0], rel=1e-4)
            assert greedy in (expected[1], str(expected[1]))


def test_whole_texts_are_as_likely_as_the_network_says(serving, results):
    for sample, asked in zip(results["rolling"], QUESTIONS, strict=True):
        expected = judged(serving, [serving.tokenizer.end_of_text, *serving.tokenizer.encode(asked["question"])], 1)[0]
        ((found,),) = sample["resps"]
        found = found[0] if isinstance(found, tuple | list) else found
        assert float(found) == pytest.approx(expected, rel=1e-4)


def test_what_is_written_is_what_the_network_likes_best(serving, results):
    for sample, asked in zip(results["writing"], QUESTIONS, strict=True):
        ids, text = serving.tokenizer.encode(asked["question"]), ""
        for _ in range(12):
            logits_TV = serving.module.apply({"params": serving.params}, np.array([ids], np.int32))[0]
            ids = [*ids, int(logits_TV[-1].argmax())]
            text += serving.tokenizer.decode(ids[-1:])
            if " the" in text or ids[-1] == serving.tokenizer.end_of_text:
                break
        ((found,),) = sample["resps"]
        assert found == text.partition(" the")[0]
