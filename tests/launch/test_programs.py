"""The programs as a user starts them: real processes, one small trained run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from compiled_fast import COMPILED_FAST

pytestmark = pytest.mark.end_to_end

ROOT = Path(__file__).parents[2]
SMOKE = ["--config=smoke", "--data.source=text:{data}/*.txt", "--train.steps=10"]


def program(name: str, *arguments: str, status: int = 0, **options) -> subprocess.CompletedProcess[str]:
    """Run `python -m launch.NAME`; its exit status must be `status`."""
    environment = {**os.environ, "XLA_FLAGS": COMPILED_FAST, "NO_COLOR": "1", "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-m", f"launch.{name}", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False, **options,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(4):
        lines = [f"the cat number {number} sat on mat {line} 猫坐在垫子上 😀\n" for line in range(200)]
        (folder / f"{number}.txt").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def smoke(corpus) -> list[str]:
    return [flag.format(data=corpus) for flag in SMOKE]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, smoke) -> tuple[Path, str]:
    """The folder of a finished run and what the program printed on stdout."""
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    return folder, program("train", *smoke, f"--run={folder}").stdout


def test_training_ends_with_samples_baselines_and_the_path_of_the_report(trained):
    folder, printed = trained
    assert f"report: {folder / 'report.html'}" in printed
    assert "sample 1 of 3" in printed
    assert re.search(r"this run +\d\.\d{3}", printed)
    assert re.search(r"xz +\d\.\d{3}", printed)
    assert "evaluated on the first 4 held-out batches" in printed
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any("eval/bits_per_byte" in line for line in metrics)
    assert all("step" in line for line in metrics)
    assert list(folder.glob("events.*"))


def test_the_report_is_self_contained_and_shows_each_part(trained, smoke):
    page = (trained[0] / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=[\"']?https?:", page)
    for part in (
        "xz",
        "trigram",
        "--config=smoke",
        "Samples through training",
        "attention",
        "&quot;num_layers&quot;: 2",
    ):
        assert part in page, part


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(trained, smoke):
    """The loop's part of it is in tests/train/test_loop.py, and always tested."""
    folder, _ = trained
    before = (folder / "metrics.jsonl").read_text()
    program("train", *smoke, f"--run={folder}")
    assert (folder / "metrics.jsonl").read_text() == before


def test_a_run_with_another_config_is_refused_with_the_differences(trained, smoke):
    refused = program("train", *smoke, f"--run={trained[0]}", "--model.num_layers=3", status=2).stderr
    assert "model.num_layers" in refused
    assert "3" in refused
    assert "--run" in refused


def test_config_from_a_run_folder_gives_its_settings(trained, smoke):
    printed = program("train", f"--config={trained[0]}", "--model.dropout=0.25", "--print_config").stdout
    saved = json.loads((trained[0] / "config.json").read_text())
    shown = json.loads(printed)
    assert shown["model"].pop("dropout") == 0.25
    assert saved["model"].pop("dropout") == 0.0
    assert shown == saved


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path, corpus, smoke):
    arguments = [*smoke, "--train.steps=100000", "--train.log_every=1", f"--run={tmp_path / 'run'}"]
    environment = {**os.environ, "XLA_FLAGS": COMPILED_FAST}
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.train", *arguments], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and len(metrics.read_text().splitlines()) > 5):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    (last,) = re.findall(r"Saved at step (\d+) of 100000; to go on: uv run -m launch\.train", errors)
    assert (tmp_path / "run" / "checkpoints" / last).is_dir()


def test_sample_json_holds_tokens_with_log_probabilities(trained):
    arguments = (f"--checkpoint={trained[0]}", "--prompt=the cat", "--max_tokens=20", "--num_samples=2", "--json")
    samples = [json.loads(line) for line in program("sample", *arguments, "--table=3").stdout.splitlines()]
    assert len(samples) == 2
    assert samples[0]["text"] != samples[1]["text"]
    for sample in samples:
        assert sample["prompt"] == "the cat"
        assert len(sample["tokens"]) == 20
        for token in sample["tokens"]:
            assert set(token) == {"id", "text", "logprob", "top"}
            assert len(token["top"]) == 3
            assert token["top"][0]["logprob"] == max(other["logprob"] for other in token["top"])
            assert sum(np.exp(other["logprob"]) for other in token["top"]) <= 1 + 1e-5


@pytest.mark.slow  # tests/train/test_writing.py and tests/model/test_speculative.py do it without a program.
def test_greedy_text_is_streamed_the_same_each_time_and_is_a_prefix_of_a_longer_one(trained):
    arguments = (f"--checkpoint={trained[0]}", "--prompt=the cat", "--temperature=0")
    short = program("sample", *arguments, "--max_tokens=10").stdout
    long = program("sample", *arguments, "--max_tokens=30", "--seed=5").stdout
    assert long.startswith(short.rstrip("\n\ufffd"))
    guessed = program("sample", *arguments, "--max_tokens=10", f"--draft={trained[0]}", "--guesses=3")
    assert guessed.stdout == short
    # The draft is the network itself, so only what was guessed beyond the last token can be in vain.
    kept, of = map(int, re.search(r"(\d+) of (\d+) guesses kept", guessed.stderr).groups())
    assert of - 3 <= kept <= of


def test_the_table_marks_the_chosen_token(trained):
    shown = program("sample", f"--checkpoint={trained[0]}", "--temperature=0", "--max_tokens=4", "--table=5").stdout
    assert shown.count("→") == 4
    assert len([line for line in shown.splitlines() if re.search(r"0\.\d{3}", line)]) == 20


def test_attend_weights_are_causal_distributions_over_the_tokens(trained, tmp_path):
    printed = program("attend", f"--checkpoint={trained[0]}", "--text=a cat 猫", "--json").stdout
    look = json.loads(printed)
    weights_LNTS = np.array(look["weights"])
    assert weights_LNTS.shape == (2, 4, len(look["tokens"]), len(look["tokens"]))
    np.testing.assert_allclose(weights_LNTS.sum(-1), 1, atol=1e-5)
    assert np.all(np.triu(weights_LNTS, 1) == 0)


def test_attend_writes_pages_that_need_no_network(trained, tmp_path):
    printed = program("attend", f"--checkpoint={trained[0]}", "--text=a cat", f"--out={tmp_path}", "--png").stdout
    assert printed.split() == [str(tmp_path / name) for name in ("attention.html", "structure.svg", "attention.png")]
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "attention.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=[\"']?https?:", page)


def test_attend_shows_how_heads_came_to_be(trained, tmp_path):
    program("attend", f"--checkpoint={trained[0]}", "--view=evolution", f"--out={tmp_path}", "--svg")
    svg = (tmp_path / "evolution.svg").read_text(encoding="utf-8")
    assert "induction: looks behind earlier copies" in svg
    assert (tmp_path / "evolution.html").stat().st_size > 100_000


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("train", ["--model.num_hedas=3"], "model.num_heads"),
        ("train", ["--config=quikstart"], "Did you mean quickstart?"),
        ("train", ["--model.norm=bach"], "rms, layer"),
        ("train", ["model.width=3"], "is not a flag"),
        ("train", ["--run=s3://bucket/run"], "a run folder is a folder of this machine, or gs://BUCKET/FOLDER"),
        ("sample", ["--temperature=-1"], "--temperature=-1"),
        ("sample", ["--max_tokens=0"], "--max_tokens=0"),
        ("sample", ["--temperature=0", "--eta=0.1"], "--eta=0.1 contradicts --temperature=0"),
        ("sample", ["--beams=4", "--banned=x"], "--banned=x contradicts --beams=4"),
        ("attend", ["--text="], "--text is empty"),
        ("attend", ["--text=a", "--text=b"], "only --view=knockout is of several texts"),
        ("attend", ["--view=grid", "--layer=1"], "give both, or none"),
        ("attend", ["--other=a"], "--other is for --view=patch"),
    ],
)
def test_bad_flags_get_one_clear_line_and_status_2(name, arguments, words):
    errors = program(name, *arguments, status=2).stderr
    assert words in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("train", ["--config=smoke", "--data.source=text:{tmp}/none/*.txt", "--run={tmp}/run"], "none/*.txt"),
        ("sample", ["--checkpoint={tmp}/nowhere"], "nowhere"),
        ("sample", ["--checkpoint={run}@7777"], "7777"),
        ("attend", ["--checkpoint={tmp}"], "is not a run folder"),
    ],
)
def test_what_is_missing_is_named_with_status_1(name, arguments, words, tmp_path, trained):
    filled = [argument.format(tmp=tmp_path, run=trained[0]) for argument in arguments]
    errors = program(name, *filled, status=1).stderr
    assert words in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_run_with_a_learned_position_table_also_ends_with_its_report(tmp_path, smoke):
    printed = program(
        "train", *smoke, "--model.position=learned", "--train.steps=2", f"--run={tmp_path / 'run'}"
    ).stdout
    assert "report: " in printed
    program("attend", f"--checkpoint={tmp_path / 'run'}", "--text=" + "a cat " * 30, "--json", status=2)


def test_a_text_too_long_for_a_picture_is_refused_before_it_is_read(trained):
    errors = program("attend", f"--checkpoint={trained[0]}", "--text=" + "a" * 300, status=2).stderr
    assert "301 tokens" in errors
    assert "--json" in errors


def test_help_shows_every_flag_with_its_default_and_a_sentence():
    shown = program("train", "--config=smoke", "--help").stdout
    for line in ("--run=", "--config=quickstart", "--model.num_heads=4", "--model.norm=rms", "--mesh.data=-1"):
        assert f"  {line}\n" in shown, line
    assert "Number of attention (query) heads" in shown


def test_the_playground_shows_a_run_until_it_is_told_to_stop(trained):
    folder, _ = trained
    command = [sys.executable, "-m", "launch.playground", f"--checkpoint={folder}", "--port=0", "--slots=1"]
    environment = {**os.environ, "XLA_FLAGS": COMPILED_FAST}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        line = next(line for line in server.stderr if line.startswith("http://127.0.0.1:"))
        address = line.split()[0]
        with urllib.request.urlopen(f"{address}/") as page:
            assert "<title>Playground</title>" in page.read().decode()
        with urllib.request.urlopen(f"{address}/playground/api/models") as answer:
            shown = json.loads(answer.read())
        assert shown["first"] == [str(folder)]
        assert f"{folder}@10" in [choice["model"] for choice in shown["models"]]
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
