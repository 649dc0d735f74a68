"""What both sides of `benchmarks.train_cpu` have in common: how they answer, and how the fastest matmul is found.

For each line on stdin, `train SECONDS` or `peak SECONDS`, a side answers with a line of JSON. Nothing but Python is
needed here: the sides run in environments of their own.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

Answer = Callable[[float], dict[str, Any]]


def serve(facts: dict[str, Any], train: Answer, peak: Answer) -> None:
    """Say the facts, then answer lines until there are none."""
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        command, seconds = line.split()
        print(json.dumps((train if command == "train" else peak)(float(seconds))), flush=True)


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
