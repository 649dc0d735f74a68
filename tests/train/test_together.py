"""Runs that are trained in one program come to what `launch.train`'s loop makes of each."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sqlite3

import jax
import numpy as np
import pytest

from configs import schema
from configs.check import check
from configs.convert import override
from configs.schema import ConfigError
from model.sharding import make_mesh
from tests.tiny import tiny
from train.ablation import UNFINISHED, Corpora, Results, plan, train_group
from train.data.pipeline import held_out_batches
from train.data.sources import open_corpus
from train.data.tokenizer import make_tokenizer
from train.loop import train
from train.together import NUMBERS, program_of, train_together

STEPS = 50  # With 25 to an evaluation, which one call does not take.


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for number in range(4):
        (folder / f"{number}.txt").write_text(f"the cat {number} sat on the mat 猫\n" * 30, encoding="utf-8")
    settings = {
        "data.source": f"text:{folder}/*.txt", "train.steps": STEPS, "train.batch_size": 8, "train.log_every": 1,
        "train.eval_every": STEPS // 2, "train.eval_batches": 2, "train.checkpoint_every": 0, "train.sample_every": 0,
        "optimizer.warmup_steps": 5, "tokenizer.vocab_size": 257,
    }  # fmt: skip
    return override(tiny(), settings)


def alone(config, folder) -> list[dict]:
    train(config, folder, "")
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_same_runs_as_one_after_another(base, tmp_path, monkeypatch):
    monkeypatch.setattr("train.loop.make_mesh", lambda mesh: make_mesh(mesh, jax.devices()[:1]))
    rich = override(base, {
        "model.dropout": 0.1, "train.z_loss": 1e-4, "train.label_smoothing": 0.1, "optimizer.ema_decay": 0.9,
        "optimizer.schedule": "wsd",
    })  # fmt: skip
    other = override(rich, {
        "train.seed": 1, "optimizer.learning_rate": 3e-3, "optimizer.weight_decay": 0.02, "optimizer.warmup_steps": 9,
        "optimizer.beta2": 0.99, "optimizer.decay_fraction": 0.5, "optimizer.end_fraction": 0.0,
        "optimizer.clip_norm": 0.5, "train.z_loss": 1e-3, "train.label_smoothing": 0.2, "model.dropout": 0.3,
        "optimizer.ema_decay": 0.8, "optimizer.epsilon": 1e-6, "optimizer.beta1": 0.8, "train.spike_factor": 4.0,
    })  # fmt: skip
    assert all(setting in NUMBERS for setting in ("model.dropout", "train.seed"))
    corpus = open_corpus(base.data)
    tokenizer = make_tokenizer(base.tokenizer, corpus)
    steps = []
    # The last one meets an anomaly, which ends it, and changes nothing in the others.
    wild = override(rich, {"optimizer.learning_rate": 1e30, "optimizer.warmup_steps": 0})
    found = train_together([rich, other, wild, rich], corpus, tokenizer, lambda: steps.append(1))
    assert len(steps) == STEPS
    for number, config in enumerate((rich, other)):
        expected = alone(config, tmp_path / str(number))
        assert [line["step"] for line in found[number]] == [line["step"] for line in expected]
        for mine, theirs in zip(found[number], expected, strict=True):
            for name in mine:
                assert mine[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-6), (mine["step"], name)
    losses = [[line["train/loss"] for line in lines if "train/loss" in line] for lines in found[:2]]
    assert np.abs(np.subtract(*losses)).min() > 1e-3  # They are different runs.
    assert found[3] == found[0]
    assert found[2][-1]["train/anomaly"] == 1
    assert len(found[2]) < 10


@pytest.mark.slow  # It compiles one program three times.
def test_runs_that_were_killed_go_on_where_they_were(base, tmp_path, monkeypatch):
    monkeypatch.setattr("train.unfinished.SECONDS", 0.0)
    settings = {"train.steps": 8, "train.eval_every": 2, "train.eval_batches": 1, "model.num_layers": 1}
    rates = [{"optimizer.learning_rate": rate} for rate in (1e-3, 1e30)]  # The second one stops by an anomaly.
    base = check(override(base, {**settings, "optimizer.warmup_steps": 0}))
    runs, steps = plan(base, rates, [0, 1], "", corpora := Corpora()), 0

    def trained(name, killed_at=0):
        """All lines, and at how many steps training began and ended."""
        nonlocal steps
        results, seen, steps = Results(tmp_path / name / "results.sqlite"), [], 0

        def on_step():
            nonlocal steps
            steps += 1
            if steps == killed_at:
                raise KeyboardInterrupt

        def prune(lines):
            seen.append(json.dumps(lines))  # Where nothing is a number, that is equal too.
            return False

        with contextlib.suppress(KeyboardInterrupt):
            train_group(runs, results, corpora, base, on_step, prune)
        found = [lines_of(results, run) for run in runs]
        results.close()
        return found, seen

    whole = trained("whole")
    assert any(name == "eval/bits_per_byte" for _, name, _ in whole[0][0])
    assert trained("killed", killed_at=6)[0] == [[]] * 4
    assert (tmp_path / "killed" / UNFINISHED).is_dir()
    calls = []
    monkeypatch.setattr("train.together.held_out_batches", lambda *a: calls.append(1) or held_out_batches(*a))
    assert trained("killed") == whole
    assert steps == 8
    assert len(calls) == 2  # Of four evaluations, the two behind what was saved at step 4.
    assert not (tmp_path / "killed" / UNFINISHED).exists()


def test_programs_are_shared_where_only_numbers_differ(base):
    def shared(changes: dict) -> bool:
        return program_of(override(base, changes)) == program_of(base)

    assert shared({"train.seed": 3, "optimizer.learning_rate": 0.5, "optimizer.warmup_steps": 0, "name": "other"})
    assert not shared({"model.width": 32})
    assert not shared({"model.dropout": 0.1})  # 0 is another program: nothing is dropped.
    assert not shared({"train.steps": STEPS - 1})
    with pytest.raises(ConfigError, match="seeds and numbers"):
        train_together([base, override(base, {"train.steps": 3})], None, None)
    with pytest.raises(ConfigError, match="--init_from"):
        train_together([dataclasses.replace(base, init_from="smollm2")], None, None)


def test_numbers_are_settings_that_are_numbers():
    values = {name: value for name, _, value in schema_leaves()}
    assert all(type(values[name]) in (int, float) for name in NUMBERS)
    assert len(jax.devices()) >= 2  # So that the runs above were spread over devices.


def lines_of(results, run) -> list[tuple[int, str, float]]:
    with sqlite3.connect(results.folder / "results.sqlite") as database:
        return database.execute(
            "select step, name, value from lines where key=? order by step, name", (run.key,)
        ).fetchall()


def schema_leaves():
    from configs.convert import leaves

    return leaves(schema.Config())
