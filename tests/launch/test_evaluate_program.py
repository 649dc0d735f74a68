"""Evaluating by command: held-out text, files, and questions with examples, with one small network."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest
from absl import flags

from configs import schema
from configs.convert import override
from configs.schema import ConfigError
from launch import evaluate
from model import build
from tests.tiny import random_params, tiny
from train.checkpoint import Restored
from train.data.sources import open_corpus
from train.data.tokenizer import make_tokenizer
from train.run import save_run

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run folder with a small network of random weights."""
    folder = tmp_path_factory.mktemp("evaluate")
    for number in range(3):
        (folder / f"{number}.txt").write_text(f"the cat number {number} sat 猫\n" * 12, encoding="utf-8")
    config = override(tiny(), {"tokenizer.vocab_size": 257, "data.source": f"text:{folder}/*.txt", "data.length": 64})
    tokenizer = make_tokenizer(schema.Tokenizer(source="bytes"), open_corpus(config.data))
    config = dataclasses.replace(config, tokenizer=schema.Tokenizer("bytes", tokenizer.size))
    save_run(folder / "run", Restored(config, random_params(build(config)), tokenizer, 0))
    return folder / "run"


@pytest.fixture
def evaluated(monkeypatch, capsys, run_dir):
    """Runs launch.evaluate in this process, given its flags; returns what it printed as objects."""
    monkeypatch.setenv("GLIBC_TUNABLES", "")  # Else it would start this process again.
    before = set(flags.FLAGS)
    evaluate.define([])
    names = set(flags.FLAGS) - before

    def run(*arguments: str) -> list[dict]:
        command = ["launch.evaluate", f"--checkpoint={run_dir}", "--json", *arguments]
        monkeypatch.setattr(sys, "argv", command)
        flags.FLAGS(command)
        evaluate.run()
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    yield run
    flags.FLAGS.unparse_flags()
    for name in names:
        delattr(flags.FLAGS, name)


def test_held_out_text_is_that_of_the_run_and_files_cost_about_the_same(evaluated, run_dir):
    (held_out,) = evaluated()
    assert held_out["eval/tokens"] > 0
    (files,) = evaluated(f"--files={run_dir.parent}/*.txt", "--window=64", "--stride=32")
    assert files["texts"] == 3
    assert files["text_bytes"] == sum(path.stat().st_size for path in run_dir.parent.glob("*.txt"))
    assert files["bits_per_byte"] == pytest.approx(held_out["eval/bits_per_byte"], rel=0.2)


def test_questions_give_numbers_a_page_and_pictures(evaluated, tmp_path):
    found = evaluated("--tasks=sums", "--shots=0,1", "--draws=1", "--questions=2", "--window=64", f"--out={tmp_path}")
    assert [(one["task"], one["shots"]) for one in found] == [("sums", 0), ("sums", 1)]
    assert all(0 <= one["low"] <= one["accuracy"] <= one["high"] <= 1 for one in found)
    page = (tmp_path / "shots.html").read_text("utf-8")
    assert "--tasks=sums" in page
    assert (tmp_path / "shots.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "shots.svg").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shots=some"], "--shots=some"),
        (["--stride=4"], "--stride=4"),
        (["--include_path=nowhere", "--tasks=mine"], "nowhere"),
        (["--include_path=."], "--tasks"),
        (["--checkpoint=smollm2", "--questions=-1"], "--questions=-1"),
        (["--files=nowhere/*.md"], "nowhere"),
    ],
)
def test_what_cannot_be_is_refused(evaluated, arguments, message):
    with pytest.raises(ConfigError, match=message):
        evaluated(*arguments)
