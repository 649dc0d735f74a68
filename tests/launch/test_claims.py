"""launch.claims: what holds is told from what does not, nothing is measured twice, and the page shows it."""

from __future__ import annotations

import dataclasses
import json
import re
import sys

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from tiny import random_params, tiny

from configs import schema
from launch.claims import __main__ as program
from launch.claims.average import run as run_average
from launch.claims.claim import Chart, Claim, Outcome, Setup, at_least, at_most
from launch.claims.page import claims_page
from launch.claims.parallel import longest_chain
from model import build
from train.checkpoint import Restored
from train.data.sections import Corpus
from train.data.tokenizer import make_tokenizer
from train.run import save_run

OUTCOME = Outcome(
    [at_least("a share", 0.75, 0.5), at_most("an </li> error", 0.2, 0.1)],
    {"share": 0.75},
    [Chart("Lines", "x", "y", [{"x": 1, "y": 2.0, "series": "one"}, {"x": 2, "y": 3.0, "series": "other"}], log_x=True),
     Chart("Bars", "x", "y", [{"x": "a", "y": 2.0}], mark="bar")],
    ["A <note>."],
)  # fmt: skip


@pytest.fixture
def program_flags(monkeypatch, tmp_path):
    """A function that sets the program's flags, and the run folder of a network with random weights."""
    config = dataclasses.replace(tiny(), tokenizer=schema.Tokenizer(source="bytes", vocab_size=257))
    params = random_params(build(config))
    tokenizer = make_tokenizer(config.tokenizer, Corpus([], [], "", ""))  # type: ignore[arg-type]
    save_run(tmp_path / "run", Restored(config, params, tokenizer, 0))
    before = set(flags.FLAGS)

    def parse(*arguments):
        command = ["launch.claims", f"--checkpoint={tmp_path / 'run'}", f"--out={tmp_path / 'out'}", *arguments]
        monkeypatch.setattr(sys, "argv", command)
        program.define(command)
        flags.FLAGS(command)

    yield parse
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)


def test_a_check_holds_at_its_bound_and_not_beyond():
    assert at_least("x", 0.5, 0.5).holds
    assert not at_least("x", 0.49, 0.5).holds
    assert at_most("x", 0.5, 0.5).holds
    assert not at_most("x", float("nan"), 0.5).holds
    assert at_most("loss", 0.51239, 0.5).told() == "loss: 0.5124 (at most 0.5)"


def test_weights_times_values_are_what_heads_read_whatever_the_weights(program_flags, tmp_path):
    outcome = run_average(Setup(tmp_path, fast=True, checkpoint=str(tmp_path / "run"), causal=""))
    assert [check.told() for check in outcome.checks if not check.holds] == []
    rows = outcome.charts[0].rows
    assert sum(row["y"] for row in rows) == pytest.approx(1, abs=1e-5)


def test_the_longest_chain_counts_products_that_wait_and_the_turns_of_loops():
    x = jnp.ones((3, 3))

    def looped(x):
        return jax.lax.scan(lambda carry, _: ((carry @ x) @ x, carry @ x), x, length=7)[0] @ x

    programs = {
        "beside each other": (lambda x: x @ x + (x * 2) @ x, 1),
        "one after the other": (lambda x: ((x @ x) @ x + x) @ x, 3),
        "compiled apart": (lambda x: jax.jit(lambda x: x @ x)(x) @ x, 2),
        "in a loop": (looped, 15),
        "none": (lambda x: x + 1, 0),
    }
    for name, (function, chain) in programs.items():
        assert longest_chain(jax.make_jaxpr(function)(x).jaxpr) == chain, name


def test_page_asks_the_network_for_nothing_and_no_text_becomes_markup():
    text = claims_page("Claims", "launch.claims", [(Claim("one", "It <is> so.", lambda _: OUTCOME), OUTCOME, 1.0)])
    assert not re.search(r"(src|href)=[\"']?https?:", text)
    for words in ("It &lt;is&gt; so.", "an &lt;/li&gt; error", "A &lt;note&gt;.", "✓", "✗"):
        assert words in text
    assert text.count('class="chart"') == 2


def test_what_was_found_is_kept_and_measured_again_only_if_asked(program_flags, tmp_path, monkeypatch, capsys):
    runs = []

    def measure(setup):
        runs.append(setup.fast)
        return OUTCOME

    monkeypatch.setattr(program, "CLAIMS", (Claim("one", "It is so.", measure),))
    monkeypatch.setattr(program.start, "prepare_jax", lambda: None)
    program_flags("--fast", "--json")
    first = (program.run(), capsys.readouterr().out)
    assert (program.run(), capsys.readouterr().out) == first
    assert runs == [True]
    flags.FLAGS.force = True
    program.run()
    flags.FLAGS.fast = flags.FLAGS.force = False
    assert program.run() == 1  # One of the checks does not hold.
    assert runs == [True, True, False]
    printed = json.loads(first[1])
    assert printed["holds"] is False
    assert [check["value"] for check in printed["checks"]] == [0.75, 0.2]
    assert json.loads((tmp_path / "out" / "claims.json").read_text())[0]["figures"] == {"share": 0.75}
    assert (tmp_path / "out" / "claims.html").exists()


def test_an_unknown_claim_and_a_run_that_is_not_there_are_refused(program_flags, tmp_path):
    program_flags("--only=averge")
    with pytest.raises(schema.ConfigError, match=r"--only=averge: .* Did you mean average\?"):
        program.run()
    with pytest.raises(schema.ConfigError, match=r"launch\.train --run=nowhere"):
        program._check_trained(Setup(tmp_path, True, "nowhere", ""))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["reach", "parallel", "heads", "in_context", "induction", "alignment", "circuits", "pronoun"]
)
def test_claims_come_out(name, tmp_path):
    (claim,) = (claim for claim in program.CLAIMS if claim.name == name)
    outcome = claim.run(Setup(tmp_path, fast=True, checkpoint="", causal="smollm2"))
    assert [check.told() for check in outcome.checks if not check.holds] == []
