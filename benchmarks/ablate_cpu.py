"""Eight seeds and learning rates of a small network in one program, against the same runs one after another.

uv run python -m benchmarks.ablate_cpu --runs=8 --steps=160 --source='text:docs/*.md'

Both are `train.together.train_together`: all at once on as many devices as there are cores, as launch.ablate does it;
and one run alone on one device, times their number. Compiling counts for neither. Each is measured in a process of its
own, in turns. Prints, as one JSON object, seconds and CPU seconds of a step of all runs (the shortest of some rounds)
and how much faster together is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

from absl import app, flags

from configs.convert import override
from configs.presets import preset
from train.data.sources import open_corpus
from train.data.tokenizer import make_tokenizer

FLAGS = flags.FLAGS


def measure(runs: int) -> tuple[float, float]:
    """Seconds and CPU seconds that a step of `runs` runs took, once compiling was over."""
    from train.together import MOST_STEPS, train_together

    config = override(
        preset("smoke"),
        {"train.steps": FLAGS.steps, "train.eval_every": 0, "train.eval_batches": 1, "data.source": FLAGS.source},
    )
    corpus = open_corpus(config.data)
    tokenizer = make_tokenizer(config.tokenizer, corpus)
    configs = [
        override(config, {"train.seed": number, "optimizer.learning_rate": 1e-3 * (1 + number)})
        for number in range(runs)
    ]
    marks: list[tuple[float, float]] = []
    train_together(configs, corpus, tokenizer, lambda: marks.append((time.perf_counter(), time.process_time())))
    # The first call compiles, and dispatches without waiting; the second waits for the first.
    first, last = marks[2 * MOST_STEPS], marks[-1]
    steps = len(marks) - 1 - 2 * MOST_STEPS
    return (last[0] - first[0]) / steps, (last[1] - first[1]) / steps


def measured(runs: int) -> tuple[float, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.ablate_cpu", *sys.argv[1:], f"--only={runs}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def main(_: list[str]) -> None:
    """Both, in turns."""
    if FLAGS.only:
        import jax

        jax.config.update("jax_num_cpu_devices", (os.cpu_count() or 1) if FLAGS.only > 1 else 1)
        print(json.dumps(measure(FLAGS.only)))
        return
    rounds = [(measured(FLAGS.runs), measured(1)) for _ in range(FLAGS.rounds)]
    together, alone = ([min(one[side][kind] for one in rounds) for kind in (0, 1)] for side in (0, 1))
    print(
        json.dumps(
            {
                "runs": FLAGS.runs,
                "together_seconds": together[0],
                "one_after_another_seconds": alone[0] * FLAGS.runs,
                "together_cpu_seconds": together[1],
                "one_after_another_cpu_seconds": alone[1] * FLAGS.runs,
                "faster": alone[0] * FLAGS.runs / together[0],
                "fewer_cpu_seconds": alone[1] * FLAGS.runs / together[1],
            }
        )
    )


if __name__ == "__main__":
    flags.DEFINE_integer("runs", 8, "Runs, each with a seed and a learning rate of its own.")
    flags.DEFINE_integer("steps", 160, "Steps of each run, a multiple of 16.")
    flags.DEFINE_integer("only", 0, "Only measure so many runs together, here.")
    flags.DEFINE_integer("rounds", 3, "Times that each is measured.")
    flags.DEFINE_string("source", "stdlib", "What is read, as --data.source.")
    app.run(main)
