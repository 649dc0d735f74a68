"""Eight seeds and learning rates of a small network in one program, against the same runs one after another.

uv run python -m benchmarks.ablate_cpu --runs=8 --steps=160 --source='text:docs/*.md'

Two figures, in processes of their own, each as a JSON object with seconds and CPU seconds:
`steps`, one step of all runs, compiling left aside: `train.together.train_together` with all at once, as launch.ablate
does it, and with one run alone, times their number (the shortest of some rounds);
`commands`, from the command to the numbers: one `launch.ablate`, and one `launch.train` for each run, which evaluates
once and neither samples nor saves on the way. `cold` has an empty cache of compiled programs, `warm` is the same again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from configs.convert import override
from configs.presets import preset
from launch import start
from train.data.sources import open_corpus
from train.data.tokenizer import make_tokenizer

FLAGS = flags.FLAGS


def settings() -> dict[str, Any]:
    """What all runs have."""
    return {
        "train.steps": FLAGS.steps, "train.eval_every": 0, "train.eval_batches": 1, "data.source": FLAGS.source,
        "train.sample_every": 0, "train.checkpoint_every": 0,
    }  # fmt: skip


def rates(runs: int) -> list[float]:
    """The learning rate of each run."""
    return [round(1e-3 * (1 + number), 6) for number in range(runs)]


def measure(runs: int) -> tuple[float, float]:
    """Seconds and CPU seconds that a step of `runs` runs took, once compiling was over."""
    from train.together import MOST_STEPS, train_together

    config = override(preset("smoke"), settings())
    corpus = open_corpus(config.data)
    tokenizer = make_tokenizer(config.tokenizer, corpus)
    configs = [
        override(config, {"train.seed": number, "optimizer.learning_rate": rate})
        for number, rate in enumerate(rates(runs))
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


def timed(commands: list[list[str]], cache: Path) -> tuple[float, float]:
    """Seconds and CPU seconds of commands, one after another."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    began, before = time.perf_counter(), os.times()
    for command in commands:
        subprocess.run([sys.executable, "-m", *command], env=environment, stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - began, cpu


def commands() -> Iterator[tuple[str, dict[str, float]]]:
    """Whole commands, with a cold cache and with a warm one."""
    flags_of_all = ["--config=smoke", *(f"--{name}={value}" for name, value in settings().items())]
    values = [str(rate) for rate in rates(FLAGS.runs)]
    with tempfile.TemporaryDirectory() as folder:
        for cache in ("cold", "warm"):
            run = Path(folder) / cache
            vary = [f"--vary=optimizer.learning_rate={','.join(values)}", "--seeds=1", f"--run={run}/all"]
            alone = [
                ["launch.train", *flags_of_all, f"--optimizer.learning_rate={value}", f"--run={run}/{value}"]
                for value in values
            ]
            together_took = timed([["launch.ablate", *flags_of_all, *vary]], Path(folder) / "cache-together")
            yield cache, compared(together_took, timed(alone, Path(folder) / "cache-alone"))


def compared(together: Sequence[float], alone: Sequence[float]) -> dict[str, float]:
    """Seconds and CPU seconds of all runs together, and one after another."""
    return {
        "together_seconds": together[0],
        "one_after_another_seconds": alone[0],
        "together_cpu_seconds": together[1],
        "one_after_another_cpu_seconds": alone[1],
        "faster": alone[0] / together[0],
        "fewer_cpu_seconds": alone[1] / together[1],
    }


def main(_: list[str]) -> None:
    """Both, in turns."""
    start.prepare_jax()  # As the programs have it.
    if FLAGS.only:
        import jax

        jax.config.update("jax_num_cpu_devices", (os.cpu_count() or 1) if FLAGS.only > 1 else 1)
        print(json.dumps(measure(FLAGS.only)))
        return
    if "steps" in FLAGS.figures:
        rounds = [(measured(FLAGS.runs), measured(1)) for _ in range(FLAGS.rounds)]
        together, alone = ([min(one[side][kind] for one in rounds) for kind in (0, 1)] for side in (0, 1))
        tell("steps", compared(together, [each * FLAGS.runs for each in alone]))
    if "commands" in FLAGS.figures:
        for cache, found in commands():
            tell(f"commands, {cache} cache", found)


def tell(figure: str, found: dict[str, float]) -> None:
    """One figure as a line."""
    print(json.dumps({"figure": figure, "runs": FLAGS.runs, "steps": FLAGS.steps, **found}), flush=True)


if __name__ == "__main__":
    flags.DEFINE_integer("runs", 8, "Runs, each with a seed and a learning rate of its own.")
    flags.DEFINE_integer("steps", 160, "Steps of each run, a multiple of 16.")
    flags.DEFINE_integer("only", 0, "Only measure so many runs together, here.")
    flags.DEFINE_integer("rounds", 3, "Times that each is measured.")
    flags.DEFINE_list("figures", ["steps", "commands"], "Which of the two.")
    flags.DEFINE_string("source", "stdlib", "What is read, as --data.source.")
    app.run(main)
