"""Eight seeds and learning rates of a small network in one program, against the same runs one after another.

uv run python -m benchmarks.ablate_cpu --runs=8 --steps=60 --source='text:docs/*.md'

Both are `train.together.train_together`; one after another means once for each run, each with its program compiled
before. Prints, as one JSON object, seconds and CPU seconds of both (the shortest of some rounds, taken in turns) and
how much faster together is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from absl import app, flags

from configs.convert import override
from configs.presets import preset
from train.data.sources import open_corpus
from train.data.tokenizer import make_tokenizer

FLAGS = flags.FLAGS


def seconds_per_step(work: Callable[[int], Any], steps: int) -> tuple[float, float]:
    """Seconds and CPU seconds of a step: those of many steps less those of few, so that compiling drops out."""

    def took(steps: int) -> tuple[float, float]:
        began = time.perf_counter(), time.process_time()
        work(steps)
        return time.perf_counter() - began[0], time.process_time() - began[1]

    few, many = took(2), took(steps + 2)
    return (many[0] - few[0]) / steps, (many[1] - few[1]) / steps


def main(_: list[str]) -> None:
    """Both, in turns."""
    from train.together import train_together

    config = override(
        preset("smoke"),
        {"train.eval_every": 0, "train.eval_batches": 1, "model.layers": "scan", "data.source": FLAGS.source},
    )
    corpus = open_corpus(config.data)
    tokenizer = make_tokenizer(config.tokenizer, corpus)
    runs = [
        override(config, {"train.seed": number, "optimizer.learning_rate": 1e-3 * (1 + number)})
        for number in range(FLAGS.runs)
    ]

    def together(steps: int) -> None:
        train_together([override(run, {"train.steps": steps}) for run in runs], corpus, tokenizer)

    def alone(steps: int) -> None:
        train_together([override(runs[0], {"train.steps": steps})], corpus, tokenizer)

    rounds = [
        (seconds_per_step(together, FLAGS.steps), seconds_per_step(alone, FLAGS.steps)) for _ in range(FLAGS.rounds)
    ]
    best = [[min(one[side][kind] for one in rounds) for kind in (0, 1)] for side in (0, 1)]
    print(json.dumps({
        "runs": FLAGS.runs,
        "together_seconds": best[0][0], "one_after_another_seconds": best[1][0] * FLAGS.runs,
        "together_cpu_seconds": best[0][1], "one_after_another_cpu_seconds": best[1][1] * FLAGS.runs,
        "faster": best[1][0] * FLAGS.runs / best[0][0], "fewer_cpu_seconds": best[1][1] * FLAGS.runs / best[0][1],
    }))  # fmt: skip


if __name__ == "__main__":
    flags.DEFINE_integer("runs", 8, "Runs, each with a seed and a learning rate of its own.")
    flags.DEFINE_integer("steps", 60, "Steps that are timed.")
    flags.DEFINE_integer("rounds", 3, "Times that each is measured.")
    flags.DEFINE_string("source", "stdlib", "What is read, as --data.source.")
    app.run(main)
