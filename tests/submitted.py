"""Whole runs, submitted as a person does it, and compared with each other: for the slow tests of clusters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from compiled_fast import COMPILED_FAST

ROOT = Path(__file__).parents[1]
STEPS = 600
# Steps take milliseconds: there have to be many for something to happen in the middle of them.
TRAINING = (
    "--config=smoke", "--model.width=16", "--model.num_layers=1", "--data.length=16", "--data.held_out=0.1",
    "--data.section_bytes=64", "--train.batch_size=8", f"--train.steps={STEPS}", "--train.log_every=1",
    "--train.eval_every=0", "--train.eval_batches=2", "--train.sample_every=0", "--train.sample_tokens=2",
    "--train.checkpoint_every=50", "--mesh.data=2",
)  # fmt: skip


def words(folder: Path) -> Path:
    """A text to train on."""
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(["see", "attention", "query", "key", "value"], 6)) for _ in range(900)]
    (folder / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder / "text.txt"


def training(text: Path, run: Path | str) -> list[str]:
    """The command."""
    return ["launch.train", *TRAINING, f"--data.source=text:{text}", f"--run={run}"]


def submit(home: Path, *flags: str, command: list[str] | None = None, status: int = 0, **environment: str) -> str:
    """What launch.submit says on stdout; `home` is where its records and compiled programs are."""
    more = {
        "XDG_STATE_HOME": str(home / "state"), "XDG_CACHE_HOME": str(home / "cache"), "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": COMPILED_FAST, **environment,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "launch.submit", *flags, *(["--", *command] if command else [])], cwd=ROOT,
        env={**os.environ, **more}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == status, (done.stdout, done.stderr)
    return done.stdout


def last_step(run: Path) -> int:
    """The last step in a run's metrics."""
    try:
        return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    except (OSError, IndexError, ValueError):
        return 0


def wait_for_step(run: Path, step: int, seconds: float = 240) -> None:
    """Until the run has come so far."""
    deadline = time.monotonic() + seconds
    while last_step(run) < step:
        assert time.monotonic() < deadline, [path.read_text()[-3000:] for path in run.glob("*.log")]
        time.sleep(0.1)


def assert_same(run: Path, other: Path) -> None:
    """Both have the same final parameters and losses."""
    from train.checkpoint import restore_params

    steps = json.loads((other / "config.json").read_text())["train"]["steps"]
    ours, theirs = (jax.tree.leaves_with_path(restore_params(f"{path}@{steps}").params) for path in (run, other))
    assert len(ours) == len(theirs) > 5
    for (name, x), (_, y) in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6, err_msg=jax.tree_util.keystr(name))
    losses = [[json.loads(line).get("train/loss") for line in (path / "metrics.jsonl").open()] for path in (run, other)]
    losses = [[loss for loss in of_run if loss is not None] for of_run in losses]
    assert len(losses[0]) == steps
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
