"""The programs with a network that translates, as a user starts them: real processes, one small trained run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.launch.test_programs import program

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]  # A translator is trained.

WORDS = {"the": "这", " cat": "猫", " dog": "狗", " sees": "看见", " big": "大", " house": "房子", " red": "红"}
SETTINGS = {
    "model.num_layers": 1, "model.encoder_layers": 2, "model.width": 32, "model.num_heads": 4, "model.dropout": 0.0,
    "data.length": 24, "data.source_length": 24, "tokenizer.vocab_size": 300, "train.batch_size": 4, "train.steps": 4,
    "train.eval_every": 2, "train.sample_every": 2, "train.score_sentences": 8, "optimizer.warmup_steps": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, str]:
    """The folder of a finished run and what the program printed on stdout."""
    folder = tmp_path_factory.mktemp("translator")
    random = np.random.default_rng(0)
    pairs = [random.choice(list(WORDS), random.integers(3, 6)) for _ in range(400)]
    lines = ["".join(words) + ".\t" + "".join(WORDS[word] for word in words) + "。" for words in pairs]
    (folder / "pairs.tsv").write_text("\n".join(dict.fromkeys(lines)) + "\n", encoding="utf-8")
    flags = [f"--{name}={value}" for name, value in SETTINGS.items()]
    source = [f"--data.source=tsv:{folder / 'pairs.tsv'}", "--data.languages=en-zh", "--config=translate"]
    return folder / "run", program("train", *source, *flags, f"--run={folder / 'run'}").stdout


def test_training_scores_held_out_translations_and_ends_with_them_beside_baselines(trained):
    folder, printed = trained
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scored = [line for line in metrics if "eval/bleu" in line]
    assert [line["step"] for line in scored] == [2, 4]
    assert all(0 <= line["eval/bleu"] <= 100 and 0 <= line["eval/chrf"] <= 100 for line in scored)
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [2, 4]
    assert len({(sample["prompt"], sample["reference"]) for sample in samples}) == 1
    for name in ("copy", "dictionary", "greedy", "beam 4"):
        assert re.search(rf"{name} +BLEU +\d+\.\d  chrF +\d+\.\d", printed), name
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=[\"']?https?:", page)
    for part in ('data-chart="alignment"', 'data-chart="learning-bleu"', "tok:zh", "of a training batch's source"):
        assert part in page.replace("&#x27;", "'"), part


def test_beam_search_gives_the_best_translations_of_each_prompt_in_order(trained):
    arguments = (f"--checkpoint={trained[0]}", "--prompt=the cat.", "--prompt=the big dog.", "--max_tokens=8")
    beams = ("--beams=3", "--num_samples=2", "--length_penalty=0.5", "--early_stopping=never")
    shown = program("sample", *arguments, *beams, "--json").stdout
    samples = [json.loads(line) for line in shown.splitlines()]
    assert [sample["prompt"] for sample in samples] == ["the cat."] * 2 + ["the big dog."] * 2
    for best, second in (samples[:2], samples[2:]):
        assert best["score"] >= second["score"]
        for sample in (best, second):
            logprobs = [token["logprob"] for token in sample["tokens"]]
            assert sample["score"] == pytest.approx(sum(logprobs) / len(logprobs) ** 0.5, abs=1e-4)


def test_a_translation_is_greedy_unless_asked_otherwise_and_stands_below_its_source(trained):
    arguments = (f"--checkpoint={trained[0]}", "--prompt=the cat sees.", "--max_tokens=8")
    greedy = json.loads(program("sample", *arguments, "--json").stdout)
    for token in greedy["tokens"]:
        assert token["id"] == token["top"][0]["id"]
    shown = program("sample", *arguments).stdout.splitlines()
    assert shown[0] == "the cat sees."
    assert shown[1] == greedy["text"]


def test_attend_shows_the_alignment_of_a_given_translation(trained, tmp_path):
    arguments = (f"--checkpoint={trained[0]}", "--text=the big cat sees.", "--target=这大猫看见。")
    look = json.loads(program("attend", *arguments, "--json").stdout)
    S, T = len(look["source"]), len(look["written"])
    assert "".join(look["source"]) == "the big cat sees.<|endoftext|>"
    assert look["read"] == ["<|endoftext|>", *look["written"][:-1]]
    assert look["written"][-1] == "<|endoftext|>"
    for name, shape in (("alignment", (1, 4, T, S)), ("encoder", (2, 4, S, S)), ("decoder", (1, 4, T, T))):
        weights = np.array(look[name])
        assert weights.shape == shape
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert np.all(np.triu(np.array(look["decoder"]), 1) == 0)
    assert np.triu(np.array(look["encoder"]), 1).any()

    printed = program("attend", *arguments, f"--out={tmp_path}", "--png").stdout
    assert printed.split() == [str(tmp_path / name) for name in ("attention.html", "structure.svg", "attention.png")]
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "attention.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=[\"']?https?:", page)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--beams=4", "--temperature=0.5"], "--temperature=0.5 contradicts --beams=4"),
        (["--beams=4", "--seed=1"], "--seed=1 contradicts --beams=4"),
        (["--beams=2", "--num_samples=3"], "--num_samples=3 is more than the --beams=2"),
        (["--length_penalty=2"], "--length_penalty=2.0 is for beam search"),
        (["--beams=0"], "--beams=0: it must be at least 1"),
        ([], "--prompt is missing"),
    ],
)
def test_flags_of_beam_search_that_contradict_each_other_are_refused(trained, arguments, words):
    errors = program("sample", f"--checkpoint={trained[0]}", *arguments, status=2).stderr
    assert words in errors
    assert errors.count("\n") == 1
