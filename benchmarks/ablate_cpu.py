"""Eight seeds and learning rates of a small network in one program, against the same runs one after another.

uv run python -m benchmarks.ablate_cpu --runs=8 --steps=60 --source='text:docs/*.md'

Both are `train.together.train_together`; one after another is a run alone, times their number; compiling counts for
neither. Prints, as one JSON object, seconds and CPU seconds of both (the shortest of some rounds, taken in turns) and
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


def seconds_per_step(train: Callable[[Callable[[], None]], Any]) -> tuple[float, float]:
    """Seconds and CPU seconds of a step, from the third on: compiling is over then."""
    marks: list[tuple[float, float]] = []
    train(lambda: marks.append((time.perf_counter(), time.process_time())))
    first, last = marks[2], marks[-1]
    return (last[0] - first[0]) / (len(marks) - 3), (last[1] - first[1]) / (len(marks) - 3)


def main(_: list[str]) -> None:
    """Both, in turns."""
    from train.together import train_together

    config = override(
        preset("smoke"),
        {
            "train.steps": FLAGS.steps,
            "train.eval_every": 0,
            "train.eval_batches": 1,
            "model.layers": "scan",
            "data.source": FLAGS.source,
        },
    )
    corpus = open_corpus(config.data)
    tokenizer = make_tokenizer(config.tokenizer, corpus)
    runs = [
        override(config, {"train.seed": number, "optimizer.learning_rate": 1e-3 * (1 + number)})
        for number in range(FLAGS.runs)
    ]

    sides = (runs, runs[:1])
    rounds = [
        [
            seconds_per_step(lambda on_step, side=side: train_together(side, corpus, tokenizer, on_step))
            for side in sides
        ]
        for _ in range(FLAGS.rounds)
    ]
    best = [[min(one[side][kind] for one in rounds) for kind in (0, 1)] for side in (0, 1)]
    print(
        json.dumps(
            {
                "runs": FLAGS.runs,
                "together_seconds": best[0][0],
                "one_after_another_seconds": best[1][0] * FLAGS.runs,
                "together_cpu_seconds": best[0][1],
                "one_after_another_cpu_seconds": best[1][1] * FLAGS.runs,
                "faster": best[1][0] * FLAGS.runs / best[0][0],
                "fewer_cpu_seconds": best[1][1] * FLAGS.runs / best[0][1],
            }
        )
    )


if __name__ == "__main__":
    flags.DEFINE_integer("runs", 8, "Runs, each with a seed and a learning rate of its own.")
    flags.DEFINE_integer("steps", 60, "Steps of each run.")
    flags.DEFINE_integer("rounds", 3, "Times that each is measured.")
    flags.DEFINE_string("source", "stdlib", "What is read, as --data.source.")
    app.run(main)
