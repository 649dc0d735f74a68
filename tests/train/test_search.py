"""A search asks for the same trials again, finds them in the results, and ends those that are worse than others."""

from __future__ import annotations

import math
import sys

import pytest

from configs.ablations import searched, varied
from configs.convert import override
from configs.presets import preset
from configs.schema import ConfigError
from train import search as module
from train.ablation import Corpora, Results, plan
from train.search import search

STEPS, EVERY = 6, 2
METRIC = "eval/bits_per_byte"
AXES = [searched("optimizer.learning_rate=1e-4..1e-1:log"), varied("model.position=rope,none")]


@pytest.fixture
def base(tmp_path):
    (tmp_path / "a.txt").write_text("the cat sat on the mat\n" * 200, encoding="utf-8")
    settings = {"data.source": f"text:{tmp_path}/*.txt", "train.steps": STEPS, "train.eval_every": EVERY}
    return override(preset("smoke"), settings)


@pytest.fixture
def trained(monkeypatch):
    """Instead of training: the best rate is 1e-2, above 3e-2 nothing is learnt at all; the keys of what was trained."""
    keys = []

    def train_group(group, results, corpora, base, on_step, prune, free):
        assert free == ["optimizer.learning_rate"]
        lines = [[] for _ in group]
        for step in range(EVERY, STEPS + 1, EVERY):
            for run, own in zip(group, lines, strict=True):
                rate = run.config.optimizer.learning_rate
                if rate > 3e-2:
                    own.append({"step": step, "train/anomaly": 1.0})
                else:
                    worse = math.log10(rate / 1e-2) ** 2 + (run.config.model.position == "none")
                    own.append({"step": step, METRIC: 1 + worse + 0.01 * run.seed + 1 / step})
            if prune(lines):
                break
        for run, own in zip(group, lines, strict=True):
            keys.append(run.key)
            bad = "train/anomaly" in own[-1]
            short = own[-1]["step"] < STEPS
            results.put(run, own, 0.0, "Stopped" if bad else "", "pruned" if short and not bad else "")

    monkeypatch.setattr(module, "train_group", train_group)
    return keys


def test_a_search_comes_near_the_best_and_is_not_done_twice(base, tmp_path, trained):
    results = Results(tmp_path / "results.sqlite")

    def tried(trials, prune=True):
        return search(base, AXES, "tpe", trials, prune, [0, 1], METRIC, results, Corpora())

    first = tried(12)
    assert first[0].runs[0].config.optimizer == base.optimizer  # The settings as they are.
    assert len(trained) == 2 * len(first) == len(set(trained))
    # With more trials it goes on from there, whatever it was that ended it.
    more = tried(30)
    assert more[: len(first)] == first
    assert len(trained) == 2 * len(more) == len(set(trained))
    best = min((one for one in more if one.value is not None), key=lambda one: one.value)
    assert best.runs[0].config.model.position == "rope"
    assert best.value < 1.1 + 1 / STEPS
    endings = [one.why for one in more if one.value is None]
    assert any("pruned at step 2" in why for why in endings)
    assert any("Stopped" in why for why in endings)
    assert not any(one.failed for one in more)
    # A value is given with few digits, so that a grid of the same settings knows the result.
    variant = {name: value for name, value in (pair.split("=") for pair in best.runs[0].variant.split())}
    rate = float(variant["optimizer.learning_rate"])
    again = plan(base, [{"optimizer.learning_rate": rate, "model.position": "rope"}], [0, 1], "", Corpora())
    assert all(results.done(run) for run in again)


def test_without_pruning_all_come_to_their_end(base, tmp_path, trained):
    results = Results(tmp_path / "results.sqlite")
    found = search(base, AXES, "random", 12, False, [0], METRIC, results, Corpora())
    assert all(one.value is not None or "Stopped" in one.why for one in found)


def test_what_contradicts_itself_is_told_and_left_out(base, tmp_path, trained):
    results = Results(tmp_path / "results.sqlite")
    axes = [searched("optimizer.learning_rate=1e-3..2e-3"), varied("model.num_heads=4,5")]
    found = search(base, axes, "random", 8, True, [0], METRIC, results, Corpora())
    assert any("--model.num_heads=5" in one.why for one in found)
    assert any(one.value is not None for one in found)


def test_without_optuna_it_says_what_to_install(base, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"seq2see\[search\]"):
        search(base, AXES, "tpe", 1, True, [0], METRIC, Results(tmp_path / "results.sqlite"), Corpora())
