"""Benchmarks in which several programs take turns, each a process of its own in an environment of its own.

A side says a line of JSON when it is ready, and answers each line on stdin, `COMMAND NUMBER`, with a line of JSON.
Nothing but Python is needed here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

# The shape of SmolLM2-135M.
SMOLLM2 = {"layers": 30, "width": 576, "heads": 9, "kv_heads": 3, "hidden": 1536, "vocabulary": 49_152}

Answer = Callable[[float], dict[str, Any]]


class Side:
    """A process that takes its turn when asked to."""

    def __init__(self, python: str, program: str, settings: dict[str, Any]) -> None:
        pipe, environment = subprocess.PIPE, {**os.environ, "JAX_PLATFORMS": "cpu"}
        command = [python, "-m", program, json.dumps(settings)]
        self.process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)
        self.facts = self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line that it writes."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(map(str, self.process.args))} ended with status {self.process.wait()}")  # type: ignore[arg-type]
        return json.loads(line)

    def ask(self, command: str, number: float) -> dict[str, Any]:
        """Let it do something: for so many seconds, or so often."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command} {number}\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve(facts: dict[str, Any], **answers: Answer) -> None:
    """Say the facts, then answer each line by the function that has its command's name, until there are none."""
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        command, number = line.split()
        print(json.dumps(answers[command](float(number))), flush=True)


def fastest(square: Callable[[int], Callable[[], object]], seconds: float) -> float:
    """FLOP/s of the fastest of several matmuls: `square(size)` makes a function that multiplies two of that size."""
    best = 0.0
    for size in (1024, 2048):
        multiply = square(size)
        multiply()
        began = time.perf_counter()
        while time.perf_counter() - began < seconds / 2:
            start = time.perf_counter()
            multiply()
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best
