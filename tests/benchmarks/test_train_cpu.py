"""The benchmark of training on a CPU runs our step in a process of its own."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent.parent


def test_it_counts_tokens_and_flops_of_our_step():
    flags = ("--shapes=tiny", "--dtypes=float32", "--sides=seq2see", "--rounds=1", "--seconds=0", "--json")
    command = [sys.executable, "-m", "benchmarks.train_cpu", *flags]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # One device.
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert not result.returncode, result.stderr
    (found,) = json.loads(result.stdout).values()
    D, F, T, V = 16, 64, 8, 11
    assert found["flops_per_token"] == 6 * (4 * D * D + 2 * D * F + D * V) + 12 * D * T
    assert 0 < found["tokens_per_second"]["seq2see"][0] * found["flops_per_token"] < found["peak_flops_per_second"]
