"""The benchmark of decoding on a CPU writes with our side, in a process of its own."""

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
def test_it_counts_the_bytes_of_a_step_and_times_it():
    flags = ("--shape=tiny", "--batches=2", "--dtypes=bfloat16", "--sides=seq2see", "--rounds=1", "--json")
    command = [sys.executable, "-m", "benchmarks.decode_cpu", *flags]
    environment = {**os.environ, "XLA_FLAGS": COMPILED_FAST}  # One device.
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert not result.returncode, result.stderr
    (found,) = json.loads(result.stdout).values()
    L, D, F, V, K, H = 2, 16, 32, 64, 1, 8
    weights = L * (2 * D * D + 2 * D * K * H + 3 * D * F) + V * D
    assert found["bytes"] == 2 * (weights + 2 * L * 2 * (8 + 24) * K * H)
    assert found["sides"]["seq2see"]["turns"][0]["few"]["seconds"] > 0
    assert found["bytes_per_second"] > 1e8
