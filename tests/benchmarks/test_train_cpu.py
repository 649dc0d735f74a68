"""The benchmark of training on a CPU runs our step in a process of its own."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest
from compiled_fast import COMPILED_FAST

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.mark.slow  # Ten CPU-seconds: a process of its own starts JAX and compiles.
def test_it_counts_tokens_and_flops_of_our_step():
    flags = ("--shapes=tiny", "--dtypes=float32", "--sides=seq2see", "--rounds=1", "--seconds=0", "--json")
    command = [sys.executable, "-m", "benchmarks.train_cpu", *flags]
    environment = {**os.environ, "XLA_FLAGS": COMPILED_FAST}  # One device.
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert not result.returncode, result.stderr
    (found,) = json.loads(result.stdout).values()
    D, F, T, V = 16, 64, 8, 11
    assert found["flops_per_token"] == 6 * (4 * D * D + 2 * D * F + D * V) + 12 * D * T
    assert 0 < found["tokens_per_second"]["seq2see"][0] * found["flops_per_token"] < found["peak_flops_per_second"]
