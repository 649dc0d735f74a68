"""What *it* stands for, by command: a network that reads both ways tells, and its causal twin cannot."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]  # Two networks are trained.

ROOT = Path(__file__).parents[2]


def program(name: str, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `python -m launch.NAME`; its exit status must be `status`."""
    environment = {**os.environ, "XLA_FLAGS": "", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", f"launch.{name}", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Both networks, trained for less than the preset says."""
    folder = tmp_path_factory.mktemp("runs")
    steps = {"encoder": 120, "decoder": 40}
    for network, count in steps.items():
        settings = [f"--model.network={network}", f"--train.steps={count}", "--train.eval_batches=4"]
        program("train", "--config=coreference", *settings, f"--run={folder / network}")
    return {network: folder / network for network in steps}


@pytest.fixture(scope="module")
def numbers(runs):
    return json.loads(
        program("coreference", f"--checkpoint={runs['encoder']}", f"--twin={runs['decoder']}", "--json").stdout
    )


def test_the_last_word_decides_what_it_stands_for_on_pairs_never_trained(numbers):
    assert [reading["text"].split()[-1] for reading in numbers["sentences"]] == ["tired.", "wide."]
    tired, wide = (reading["probability"] for reading in numbers["sentences"])
    assert tired["animal"] > 0.9
    assert wide["street"] > 0.9
    assert numbers["held_out"]["right"] > 0.98
    assert numbers["held_out"]["probability"] > 0.9
    assert numbers["held_out"]["pairs"] == 160


def test_rollout_from_it_flips_with_the_last_word(numbers):
    assert [reading["draws_from"] for reading in numbers["sentences"]] == ["animal", "street"]
    for reading in numbers["sentences"]:
        assert reading["tokens"][reading["it"]] == " it"
        assert abs(sum(reading["rollout"]) - 1) < 1e-5


def test_patches_show_where_the_last_word_decides(numbers):
    """P(street) - P(animal) at *it* in "too tired", one vector at a time being that of "too wide"."""
    patched_LT, reading = np.array(numbers["patched"]), numbers["sentences"][0]
    it, last = reading["it"], reading["tokens"].index(" tired")
    plain, other = (sentence["probability"]["street"] - sentence["probability"]["animal"]
                    for sentence in numbers["sentences"])  # fmt: skip
    # What enters the first layer differs at the last word only, and what leaves the last one counts at *it* only.
    for layer, place in ((0, last), (-1, it)):
        assert patched_LT[layer, place] == pytest.approx(other, abs=1e-3)
        assert np.delete(patched_LT[layer], place) == pytest.approx(plain, abs=1e-3)


def test_the_causal_twin_gives_the_same_for_both_and_stays_at_chance(numbers):
    twin = numbers["twin"]
    assert twin["identical_at_it"]
    assert not numbers["identical_at_it"]
    tired, wide = twin["sentences"]
    assert tired["probability"] == wide["probability"]
    assert tired["rollout"] == wide["rollout"]
    assert twin["held_out"]["right"] == 0.5
    assert twin["held_out"]["probability"] <= 0.5


def test_pictures_are_written_and_ask_the_network_for_nothing(runs, tmp_path):
    printed = program(
        "coreference", f"--checkpoint={runs['encoder']}", f"--twin={runs['decoder']}", f"--out={tmp_path}"
    ).stdout
    for name in ("coreference.html", "coreference.svg", "coreference.png"):
        assert f"{tmp_path / name}\n" in printed
    page = (tmp_path / "coreference.html").read_text("utf-8")
    assert not re.search(r"(src|href)=[\"']?https?:", page)
    svg = (tmp_path / "coreference.svg").read_text("utf-8")
    assert svg in page
    for words in (">animal<", ">street<", ">tired<", ">wide<", "Reads from left to right", "bit for bit"):
        assert words in svg.replace("tired.", "tired").replace("wide.", "wide"), words
    assert (tmp_path / "coreference.png").read_bytes().startswith(b"\x89PNG")


def test_gaps_are_filled_in_by_launch_sample(runs):
    prompt = "The animal didn't cross the street because it was <|mask|> tired."
    printed = program("sample", f"--checkpoint={runs['encoder']}", f"--prompt={prompt}").stdout
    assert re.fullmatch(r"The animal didn't cross the street because it was \w+ tired\.\n", printed)


def test_a_run_is_shown_without_its_twin_if_asked_and_a_missing_one_is_told_how_to_train(runs, tmp_path):
    alone = json.loads(program("coreference", f"--checkpoint={runs['encoder']}", "--twin=", "--json").stdout)
    assert "twin" not in alone
    missing = program("coreference", f"--checkpoint={runs['encoder']}", f"--twin={tmp_path / 'none'}", status=2)
    assert f"--model.network=decoder --run={tmp_path / 'none'}` trains it" in missing.stderr
