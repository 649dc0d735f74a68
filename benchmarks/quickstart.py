"""Time the quickstart as a newcomer sees it: from the command to the first step, to the end of training, to the report.

  uv run python -m benchmarks.quickstart            cold: compiled programs and dataset are made anew
  uv run python -m benchmarks.quickstart --warm     with the caches of an earlier run

Prints a table, and with --json one object. The run goes to a temporary folder unless --run=DIR keeps it.
"""

from __future__ import annotations

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_boolean("warm", False, "Keep the user's caches instead of starting with empty ones.")
flags.DEFINE_boolean("json", False, "Print one JSON object.")
flags.DEFINE_string("run", "", "Keep the run in this folder.")
flags.DEFINE_string("config", "quickstart", "The preset to time.")


def timed_run(folder: pathlib.Path, environment: dict[str, str]) -> dict[str, float]:
    """Seconds from the command to the first step, to the last metrics line, and to the end."""
    command = [sys.executable, "-m", "launch.train", f"--config={FLAGS.config}", f"--run={folder}"]
    metrics = folder / "metrics.jsonl"
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    seconds: dict[str, float] = {}
    while process.poll() is None:
        if "first step" not in seconds and metrics.exists() and metrics.stat().st_size:
            seconds["first step"] = time.perf_counter() - began
        if "trained" not in seconds and _is_trained(metrics):
            seconds["trained"] = time.perf_counter() - began
        time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")
    seconds["report written"] = time.perf_counter() - began
    return seconds


def _is_trained(metrics: pathlib.Path) -> bool:
    """Whether the last evaluation has been written."""
    lines = _lines(metrics)
    steps = json.loads((metrics.parent / "config.json").read_text("utf-8"))["train"]["steps"] if lines else None
    return bool(lines) and lines[-1]["step"] == steps and "eval/loss" in lines[-1]


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n")]


def main(_: list[str]) -> None:
    """Run once and print."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(FLAGS.run or f"{temporary}/run")
        caches = {} if FLAGS.warm else {"XDG_CACHE_HOME": f"{temporary}/cache", "TFDS_DATA_DIR": f"{temporary}/tfds"}
        seconds = timed_run(folder, {**os.environ, **caches})
        lines = _lines(folder / "metrics.jsonl")
        baselines = json.loads((folder / "baselines.json").read_text("utf-8"))
    results = {
        **{f"{name}, s": value for name, value in seconds.items()},
        "training (first step to last evaluation), s": seconds["trained"] - seconds["first step"],
        "tokens/s, median": statistics.median(
            [line["train/tokens_per_second"] for line in lines if "train/tokens_per_second" in line]
        ),
        "MFU, median": statistics.median([line["train/mfu"] for line in lines if "train/mfu" in line]),
        "bits per byte": [line["eval/bits_per_byte"] for line in lines if "eval/bits_per_byte" in line][-1],
        **{f"bits per byte, {name}": value for name, value in baselines.items()},
    }
    if FLAGS.json:
        print(json.dumps(results))
        return
    for name, value in results.items():
        print(f"{name:<48} {value:,.3f}")


if __name__ == "__main__":
    app.run(main)
