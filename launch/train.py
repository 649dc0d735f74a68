"""Train a network, show what it learnt, and write a report.

  uv run -m launch.train                                   the quickstart: minutes on a laptop, no download
  uv run -m launch.train --config=smoke --run=runs/try     another preset, another folder
  uv run -m launch.train --config=finetune --init_from=smollm2 --data.source=text:'notes/*.txt'    go on from weights
  uv run -m launch.train --model.num_heads=4 --optimizer.learning_rate=3e-4 --run=runs/four_heads

The same command goes on with a run that was stopped. Ctrl-C or SIGTERM saves first and ends with status 75.
Several processes, on one machine or many, train together where each is started with the same command: on a TPU pod or
under Slurm with nothing else, elsewhere with --coordinator, --num_processes and --process_id.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from absl import flags

from configs import flags as config_flags
from configs.derived import fills_in, translates
from configs.schema import Config
from launch import processes, start
from train.stop import RESTART, Stop, Stopped

if TYPE_CHECKING:
    from train.run import Run

FLAGS = flags.FLAGS
COMMAND = shlex.join(["uv", "run", "-m", "launch.train", *sys.argv[1:]])
STOP = Stop(COMMAND)


def define(argv: Sequence[str]) -> None:
    """The flags of this program: the run folder, and every setting of a run."""
    flags.DEFINE_string(
        "run", "", "The run folder, on this machine or gs://BUCKET/FOLDER; empty is runs/NAME, with the config's name."
    )  # fmt: skip
    flags.DEFINE_float(
        "watchdog_seconds", 3600.0,
        "Where nothing gets done for so long, the stacks of all threads are shown and the process ends with status 75; "
        "0 is never.",
        lower_bound=0,
    )  # fmt: skip
    processes.define()
    asks_for_help = start.asks_for_help(argv)  # Which needs no checkpoint.
    config_flags.define(argv, adopt=None if asks_for_help else adopt)


def adopt(config: Config, init_from: str) -> Config:
    """`config` with the network and the tokenizer of the checkpoint that it starts from."""
    flags.FLAGS(list(sys.argv), known_only=True)  # Those of `processes`: the others are defined after this.
    begin()
    from train.initial import adopt as adopt_network

    return adopt_network(config, init_from)


def begin() -> None:
    """Before anything is computed: JAX is made ready, and this process joins the others, if there are any."""
    start.prepare_jax()
    processes.join()
    STOP.farewell = processes.farewell


def run() -> int | None:
    """Train to the end of the config, or until a signal asks to stop; then samples and the report."""
    config = config_flags.resolve()
    if FLAGS.print_config:
        print(config_flags.to_json(config))
        return None
    begin()
    import jax

    from train.loop import train
    from train.storage import place

    folder = place(FLAGS.run or f"runs/{config.name}")
    runs: list[Run] = []

    def make_sampler(run: Run) -> Any:
        runs.append(run)
        return sampler(run)

    result = train(config, folder, COMMAND, make_sampler, STOP, FLAGS.watchdog_seconds)
    if not result.finished:
        return RESTART
    if jax.process_index() == 0:
        from launch.report import write_report

        report = write_report(runs[0], COMMAND, sys.stdout)
        print(f"\nreport: {report}")
    return 0


def sampler(run: Run) -> Any:
    """Writes the samples that are taken while training: a function of (parameters, step)."""
    import jax

    from model import build
    from model.generate import Sampling
    from train.filling import fill_in
    from train.writing import write

    module, config, settings = build(run.config), run.config, run.config.train
    if translates(config):
        return translation_sampler(run)

    def give_up(*_: Any) -> None:
        if jax.process_count() == 1 and STOP():  # Several would have to agree.
            raise Stopped

    def sample(params: Any, step: int) -> dict[str, str]:
        if fills_in(config):
            text = fill_in(module, params, run.tokenizer, settings.sample_prompt)
            return {"prompt": f"{settings.sample_prompt}\n", "text": text}
        samples = write(
            module, params, run.tokenizer, [settings.sample_prompt], Sampling(temperature=0.8),
            max_tokens=settings.sample_tokens, seeds=[step], on_token=give_up,
        )  # fmt: skip
        return {"prompt": settings.sample_prompt, "text": samples[0].text}

    return sample


def translation_sampler(run: Run) -> Any:
    """The same for translators: always the same held-out sentence, so that what was learnt in between shows."""
    from launch.look import shown_pair
    from model import build
    from train.writing import translate

    module, pair = build(run.config), shown_pair(run)

    def sample(params: Any, step: int) -> dict[str, str]:
        (text,) = translate(module, params, run.tokenizer, [pair.source], max_tokens=run.config.data.length)
        return {"prompt": pair.source, "text": text, "reference": pair.text}

    return sample


def main() -> NoReturn:
    """The program: signals are caught before anything heavy is imported."""
    STOP.install()
    start.program("launch.train", __doc__ or "", run, define, sys.argv)


if __name__ == "__main__":
    main()
