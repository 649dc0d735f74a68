"""Ablating by command: what is missing is trained, what failed is shown, and all of it is compared."""

from __future__ import annotations

import csv
import json
import sqlite3
import sys

import pytest
from absl import flags

from configs.ablations import grid, varied
from configs.convert import override
from configs.presets import preset
from configs.schema import ConfigError
from launch import ablate
from train.ablation import Corpora, Results, count_parameters, plan, tokens_of
from train.metrics import train_flops_per_token

pytestmark = pytest.mark.end_to_end
STEPS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablate")
    for number in range(3):
        (folder / f"{number}.txt").write_text(f"the cat number {number} sat 猫\n" * 40, encoding="utf-8")
    return folder


@pytest.fixture
def ablated(monkeypatch, capsys, folder):
    """Runs launch.ablate in this process, given its flags; returns its status and what it printed."""
    monkeypatch.setenv("GLIBC_TUNABLES", "")  # Else it would start this process again.
    before = set(flags.FLAGS)
    ablate.define(["--config=smoke"])
    names = set(flags.FLAGS) - before

    def run(*arguments: str):
        command = [
            "launch.ablate", "--config=smoke", f"--run={folder}/run", f"--data.source=text:{folder}/*.txt",
            f"--train.steps={STEPS}", "--train.eval_batches=1", "--model.layers=scan", "--model.num_layers=1", "--json",
            *arguments,
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", command)
        flags.FLAGS.unparse_flags()
        flags.FLAGS(command)
        status = ablate.run()
        printed = capsys.readouterr()
        return status, [json.loads(line) for line in printed.out.splitlines()], printed.err

    yield run
    flags.FLAGS.unparse_flags()
    for name in names:
        delattr(flags.FLAGS, name)


def test_a_plan_is_trained_once_and_compared(ablated, folder):
    vary = ["--vary=optimizer.learning_rate=1e-3,3e-3,1e30", "--seeds=2"]
    status, printed, told = ablated(*vary, "--dry_run")
    assert (status, printed) == (None, [{"program": 1, "runs": 6, "missing": 6}])
    assert "6 of 6 runs to train, in 1 programs" in told
    status, printed, told = ablated(*vary)
    assert status == 1  # One variant fails: it is told, and the others are compared.
    assert "failed: optimizer.learning_rate=1e+30, seed 0: Stopped at step" in told
    assert [one["variant"] for one in printed] == ["optimizer.learning_rate=0.001", "optimizer.learning_rate=0.003"]
    assert printed[1]["difference"]["mean"] == pytest.approx(printed[1]["value"]["mean"] - printed[0]["value"]["mean"])
    assert 0 <= printed[1]["p"] <= 1
    page = (folder / "run" / "report.html").read_text("utf-8")
    assert "optimizer.learning_rate=0.003" in page
    assert "Stopped at step" in page
    assert 'id="forest"' in page
    with (folder / "run" / "results.csv").open(encoding="utf-8") as file:
        assert float(list(csv.DictReader(file))[1]["value"]) == printed[1]["value"]["mean"]
    assert "learning\\_rate" in (folder / "run" / "results.tex").read_text("utf-8")
    assert (folder / "run" / "results.md").read_text("utf-8").startswith("| variant")

    # The same without the one that failed: nothing is missing, so nothing is trained again.
    with sqlite3.connect(folder / "run" / "results.sqlite") as database:
        before = database.execute("select * from runs").fetchall()
        assert [row[4] for row in before].count("failed") == 2
    status, again, _ = ablated("--vary=optimizer.learning_rate=1e-3,3e-3", "--seeds=2")
    assert (status, again) == (0, printed)
    with sqlite3.connect(folder / "run" / "results.sqlite") as database:
        assert database.execute("select * from runs").fetchall() == before

    # A job of the same program keeps a file of its own, and knows from the other one that nothing is missing.
    two = ["--vary=optimizer.learning_rate=1e-3,3e-3", "--seeds=2"]
    assert ablated(*two, "--program=1")[:2] == (0, [])
    with pytest.raises(ConfigError, match=r"--program=2: this plan has the programs 1 to 1"):
        ablated(*two, "--program=2")
    (folder / "run" / "results.sqlite").unlink()
    status, again, _ = ablated(*two, "--compare_only")
    assert (status, again) == (0, printed)


@pytest.mark.slow  # It trains three programs.
def test_a_search_tells_the_best_beside_the_baseline(ablated, folder):
    arguments = ["--search=tpe", "--trials=3", "--seeds=2", "--vary=optimizer.learning_rate=1e-3..1e-2:log"]
    arguments += [f"--run={folder}/search", "--train.eval_every=2"]
    status, printed, _ = ablated(*arguments)
    assert status == 0
    assert printed[0]["variant"] == "optimizer.learning_rate=0.001"
    values = [one["value"]["mean"] for one in printed[1:]]
    assert values == sorted(values)
    assert ablated(*arguments)[1] == printed


def test_a_law_is_fitted_to_runs_of_several_sizes(ablated, folder, monkeypatch):
    monkeypatch.setattr("train.scaling.RESAMPLES", 3)
    vary = ["--vary=model.width=16,24,32", "--vary=train.steps=2,4,8", "--seeds=1", f"--run={folder}/scaling"]
    results = Results(folder / "scaling" / "results.sqlite")
    base = override(preset("smoke"), {
        "data.source": f"text:{folder}/*.txt", "train.eval_batches": 1, "model.layers": "scan", "model.num_layers": 1,
    })  # fmt: skip
    variants = grid(varied("model.width=16,24,32"), varied("train.steps=2,4,8"))
    for one in plan(base, variants, [0], "", Corpora()):  # As if they had been trained.
        loss = 1 + 60 / one.parameters**0.5 + 50 / tokens_of(one.config) ** 0.5
        results.put(one, [{"step": one.config.train.steps, "eval/bits_per_byte": loss}], 0.0)
    results.close()
    status, printed, _ = ablated(*vary, "--fit=scaling")
    assert status == 0
    assert printed[-1]["law"]["alpha"]["mean"] == pytest.approx(0.5, rel=0.1)
    assert 'id="scaling"' in (folder / "scaling" / "report.html").read_text("utf-8")


def test_variants_are_made_equal_to_the_baseline(folder):
    base = override(preset("smoke"), {"data.source": f"text:{folder}/*.txt"})
    variants, corpora = [{}, {"model.num_layers": 1}], Corpora()
    same, fewer = plan(base, variants, [0], "params", corpora)
    assert same.config == base
    assert fewer.config.model.feed_forward_width > 0
    assert count_parameters(fewer.config) == pytest.approx(count_parameters(base), rel=0.02)
    _, longer = plan(base, variants, [0], "flops", corpora)
    assert longer.config.train.steps > base.train.steps
    assert longer.flops == pytest.approx(train_flops_per_token(base) * tokens_of(base), rel=0.05)
    _, tokens = plan(base, [{}, {"train.batch_size": 4}], [0], "tokens", corpora)
    assert tokens.config.train.steps == 2 * base.train.steps


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--vary is missing"),
        (["--vary=model.num_heads=3,4"], "num_heads"),
        (["--vary=model.width=32,32"], "the same"),
        (["--vary=model.width=32", "--seeds=0"], "--seeds=0"),
        (["--fit=scaling", "--vary=train.steps=2,4,8"], "numbers of parameters, and these have 1"),
        (["--search=tpe"], "--vary is missing"),
        (["--search=tpe", "--vary=model.width=32..64", "--match=params"], "--match=params"),
        (["--search=tpe", "--vary=model.width=32..64", "--trials=0"], "--trials=0"),
    ],
)
def test_what_cannot_be_is_refused(ablated, arguments, message):
    with pytest.raises(ConfigError, match=message):
        ablated(*arguments)
