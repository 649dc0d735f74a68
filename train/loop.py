"""The one training loop, and the life of a run folder around it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from configs.schema import Config
from model import build
from model.sharding import batch_sharding, check_divisible, make_mesh, parameter_shapes
from train import processes
from train.checkpoint import CheckpointError, Checkpoints
from train.data.pairs import tell_left_out
from train.data.pipeline import held_out_batches, train_batches
from train.evaluate import make_evaluate, make_score, put
from train.goodput import Ledger
from train.initial import initial_params
from train.metrics import JsonLines, Pace, TensorBoard, Terminal, WeightsAndBiases, Writer
from train.optimizer import evaluation_params, make_optimizer
from train.run import Run, open_run
from train.step import init_state, jit_train_step, make_train_step, state_shape
from train.stop import Stop, Stopped
from train.storage import RunFolderError, held, write_atomically
from train.watchdog import Watchdog
from train.writing import harmless

# (params, step) -> "prompt", "text" and, of a translation, "reference"
Sampler = Callable[[Any, int], dict[str, str]]


class TrainingError(RuntimeError):
    """A run that stopped by itself; the message names the step, the batch and the checkpoint to return to."""


class Anomaly(Exception):  # noqa: N818
    """A loss that is not finite or that spikes: of which step, its metrics, and the place in the data before it."""

    def __init__(self, step: int, values: dict[str, float], data_state: dict[str, Any]) -> None:
        super().__init__()
        self.step, self.values, self.data_state = step, values, data_state


@dataclasses.dataclass(frozen=True)
class Result:
    """How `train` ended."""

    step: int
    finished: bool  # False if it was asked to stop before
    evaluation: dict[str, float]  # the last one, with its `step`


def train(
    config: Config,
    folder: Path,
    command: str,
    make_sampler: Callable[[Run], Sampler] | None = None,
    stop: Stop | None = None,
    watchdog_seconds: float = 0.0,
) -> Result:
    """Trains, or goes on training, in the run folder; returns when all steps are done or a signal asked to stop.

    `command` is what a person types to go on. `make_sampler` gets the run and makes the function that writes
    the samples; what it returns must depend on its arguments alone. `stop`, if given, has been installed.

    Where nothing gets done for `watchdog_seconds`, the process ends with status 75; 0 is never.

    A run that was stopped or killed and goes on computes exactly what it would have computed otherwise.

    Raises:
      ConfigError: the config cannot be, or is not that of the run that is in the folder.
      DataError: the text cannot be read, or is not that of the run.
      TrainingError: an anomaly, with train.anomaly=stop.
      CheckpointError, RunFolderError: something cannot be written or read.
    """
    with contextlib.ExitStack() as closing:
        if stop is None:
            stop = Stop(command)
            stop.install()
            closing.callback(stop.uninstall)
        still_held = closing.enter_context(held(folder))
        run = open_run(config, folder)
        tells = config.data.languages and processes.writes()
        if tells and (left_out := tell_left_out(run.corpus, run.tokenizer, config.data)):
            print(left_out, file=sys.stderr)
        if run.corpus.skipped and processes.writes():
            _tell_skipped(run)
        trainer = Trainer(run, make_sampler(run) if make_sampler else None, stop, watchdog_seconds, still_held)
        closing.callback(trainer.close)
        result = trainer.go()
    if not result.finished and processes.writes():
        print(f"Saved at step {result.step} of {run.config.train.steps}; to go on: {command}", file=sys.stderr)
    return result


class Trainer:
    """What a run holds while it trains.

    Step n is dispatched before the metrics of step n - 1 are read, so that the devices never wait for Python.
    """

    def __init__(
        self,
        run: Run,
        sampler: Sampler | None,
        stop: Stop,
        watchdog_seconds: float = 0.0,
        still_held: Callable[[], None] = lambda: None,
    ) -> None:
        config = self.config = run.config
        self.run, self.sampler, self.still_held = run, sampler, still_held
        self.mesh = make_mesh(config.mesh)
        self.signals, self.agreed = stop, processes.Agreement(stop, self.mesh)
        check_divisible(config, self.mesh)
        module = build(config)
        optimizer = make_optimizer(config, parameter_shapes(module))
        like = state_shape(module, optimizer, config, self.mesh)
        self.rows = processes.rows_held(self.mesh, config.train.batch_size)
        self.batches = train_batches(run.corpus, run.tokenizer, config, self.rows)
        self.checkpoints = Checkpoints(run.folder, config, run.tokenizer.to_json())

        self.step = self.checkpoints.newest_good() or 0
        self.ledger = Ledger(run.folder if processes.writes() else None, self.step)
        self.make_state = lambda: init_state(
            module, optimizer, config, self.mesh, initial_params(config, self.mesh) if config.init_from else None
        )
        self.like = like
        if self.step != (first := processes.first_says(self.step)):
            raise RunFolderError(
                f"Process {jax.process_index()} sees step {self.step} in {run.folder}, process 0 sees step {first}: "
                "all processes need the same folder, on storage that they share; choose one with --run."
            )
        if (data_state := self.load_state()) is not None:
            self.batches.set_state(data_state)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
        train_step = make_train_step(module, optimizer, config, run.tokenizer.byte_lengths)
        self.train_step = jit_train_step(train_step, shardings, batch_sharding(self.mesh))
        self.evaluate = make_evaluate(module, run.tokenizer.byte_lengths, self.mesh)
        self.score = make_score(module, config, run.corpus, run.tokenizer)
        self.compiled = False
        self.pending: tuple[dict[str, jax.Array], dict[str, Any]] | None = None
        self.pace = Pace(config)
        self.watchdog = Watchdog(run.folder, watchdog_seconds, stop.farewell)
        self.open_writers()

    def load_state(self) -> dict[str, Any] | None:
        """Takes the state of the checkpoint of this step, and returns the place in the data; at step 0, a new state."""
        if not self.step:
            self.state = self.make_state()
            return None
        with self.ledger.spent_on("restore"):
            self.state, data_state = self.checkpoints.restore(self.step, self.like)
        return data_state

    def open_writers(self) -> None:
        """metrics.jsonl and samples.jsonl as they were at this step, and everything else that is written to."""
        self.writers: list[Writer] = []
        self.lines: list[JsonLines] = []
        self.samples = self.terminal = None
        evaluation: dict[str, float] = {"step": -1}
        sampled = -1
        if processes.writes():
            folder = self.run.folder
            metrics, self.samples = (JsonLines(folder / f"{name}.jsonl", self.step) for name in ("metrics", "samples"))
            self.lines = [metrics, self.samples]
            evaluation = next((line for line in reversed(metrics.kept) if "eval/loss" in line), evaluation)
            sampled = self.samples.kept[-1]["step"] if self.samples.kept else sampled
            self.writers += [metrics, TensorBoard(folder, self.step)]
            if self.config.train.wandb:
                self.writers.append(WeightsAndBiases(folder, self.config))
            self.terminal = Terminal(self.config.train.steps, self.step)
            self.writers.append(self.terminal)
        self.evaluation, self.sampled = processes.first_says((evaluation, sampled))

    def go(self) -> Result:
        """Trains to the end, or until it is asked to stop."""
        settings = self.config.train
        with jax.set_mesh(self.mesh):
            while True:
                try:
                    stopped = self.pause()
                    if stopped or self.step == settings.steps:
                        break
                    self.advance()
                except Anomaly as anomaly:
                    self.roll_back(anomaly)
        with self.ledger.spent_on("save"):
            self.checkpoints.wait()
        self.ledger.write(self.step)
        self.signals.unsaved = False
        return Result(self.step, not stopped, self.evaluation)

    def pause(self) -> bool:
        """Does what is due between two steps; returns whether the run was asked to stop."""
        settings = self.config.train
        with self.pace.pause():
            if self.is_due(settings.eval_every):
                with self.ledger.spent_on("evaluation"):
                    self.evaluate_once()
            if self.is_due(settings.sample_every):
                with self.ledger.spent_on("sampling"):
                    self.sample_once()
            stopped = self.stop()
            if stopped or self.is_due(settings.checkpoint_every):
                with self.ledger.spent_on("save"):
                    self.save()
                self.ledger.write(self.step)
                self.ledger.sync()
        return stopped

    def stop(self) -> bool:
        """Whether any process was asked to stop; to be called by all of them, wherever the run can end."""
        self.watchdog.beat(self.step)
        with self.watchdog.waits():
            return self.agreed()

    def is_due(self, every: int) -> bool:
        """Whether something is due now that is done every so many steps (0: never), and at the end."""
        return self.step == self.config.train.steps or bool(every and self.step and self.step % every == 0)

    def advance(self) -> None:
        """Dispatches a step, then reads the metrics of the step before."""
        data_state = self.batches.get_state()
        with self.ledger.spent_on("data"):
            batch = put(next(self.batches), self.mesh)
        if self.compiled:
            with self.watchdog.waits():  # Where the devices have enough to do, for them.
                self.state, metrics = self.train_step(self.state, batch)
        else:
            with self.ledger.spent_on("compile"):
                self.state, metrics = jax.block_until_ready(self.train_step(self.state, batch))
            self.compiled = True
            self.ledger.begin_steps()
        self.signals.unsaved = True  # Not before: a signal while the first step compiles ends the process at once.
        self.settle()
        self.pending = (metrics, data_state)
        self.step += 1
        self.checkpoints.check()

    def settle(self) -> None:
        """Reads the metrics of the step that was dispatched last, if they have not been read."""
        if self.pending is None:
            return
        (metrics, data_state), self.pending = self.pending, None
        with self.watchdog.waits():
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        step = self.step  # of `advance`, which has not counted its own step yet, or of what is done between steps
        if values["train/anomaly"] and self.config.train.anomaly != "skip":
            anomaly = Anomaly(step, values, data_state)
            if self.config.train.anomaly == "rollback":
                raise anomaly
            raise TrainingError(self.tell_anomaly(anomaly))
        logs = step == 1 or step % self.config.train.log_every == 0 or step == self.config.train.steps
        if logs or values["train/anomaly"]:
            skipped = {"data/skipped_records": float(len(self.run.corpus.skipped))} if self.run.corpus.skipped else {}
            self.write(step, {**values, **skipped, **self.pace.measure(step)})

    def evaluate_once(self) -> None:
        """Evaluates and logs, unless that is in metrics.jsonl already; gives up when asked to stop."""
        self.settle()
        if self.evaluation["step"] == self.step:
            return
        batches = held_out_batches(self.run.corpus, self.run.tokenizer, self.config, self.rows)
        some = itertools.islice(batches, self.config.train.eval_batches or None)
        params = evaluation_params(self.config, self.state)
        values = self.evaluate(params, some, self.stop)
        if values is not None and self.score is not None:
            scores = self.score(params, self.stop)
            values = None if scores is None else {**values, **scores}
        if values is not None and values["eval/tokens"]:
            self.evaluation = {"step": self.step, **values}
            self.write(self.step, values)

    def sample_once(self) -> None:
        """Writes a sample, unless it is in samples.jsonl already."""
        self.settle()
        if self.sampler is None or self.sampled == self.step or self.stop():
            return
        try:
            sample = self.sampler(evaluation_params(self.config, self.state), self.step)
        except Stopped:
            return
        self.sampled = self.step
        if self.samples and self.terminal:
            self.samples.write(self.step, sample)
            self.terminal.say(harmless(f"sample at step {self.step}: {_told(sample)}"))

    def save(self) -> None:
        """Starts to save, unless a checkpoint of this step is there already."""
        self.settle()
        if self.checkpoints.newest() == self.step:
            return
        self.still_held()
        for lines in self.lines:  # None of which a run that goes on from here would write again.
            lines.sync()
        evaluated = self.evaluation["step"] == self.step
        bits_per_byte = self.evaluation["eval/bits_per_byte"] if evaluated else None
        self.checkpoints.save(self.state, self.step, processes.joined(self.batches.get_state()), bits_per_byte)

    def write(self, step: int, values: dict[str, float]) -> None:
        """To everything that is written to."""
        for writer in self.writers:
            writer.write(step, values)
        self.ledger.write(self.step)

    def roll_back(self, anomaly: Anomaly) -> None:
        """Returns to the newest checkpoint, to go on from there with the data behind the batches that were read.

        A run that is killed before its next checkpoint meets the same anomaly again, and does the same: it counts once.
        """
        self.checkpoints.wait()
        newest = self.checkpoints.newest() or 0
        record = {"step": anomaly.step, "to": newest, **self.described(anomaly)}
        path = self.run.folder / "rollbacks.jsonl"
        known: list[dict[str, Any]] = []
        if processes.writes():
            known = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
            if record not in known:
                known.append(record)
        count = processes.first_says(len(known))
        if count > self.config.train.rollbacks:
            raise TrainingError(
                f"{self.tell_anomaly(anomaly)} Before this, it has rolled back {count - 1} times (--train.rollbacks)."
            )
        if processes.writes():
            write_atomically(path, "".join(json.dumps(line) + "\n" for line in known))
            print(
                f"Rolled back from step {anomaly.step} to step {newest}, leaving out the batches between: the loss was "
                f"{anomaly.values['train/loss']:g}. This is number {count} of at most "
                f"{self.config.train.rollbacks}; {path} has the details.",
                file=sys.stderr,
            )  # fmt: skip
        self.pending, self.step = None, newest
        self.close_writers()
        self.ledger.go_back(newest)
        self.load_state()
        self.open_writers()

    def described(self, anomaly: Anomaly) -> dict[str, Any]:
        """What is known of it, for JSON; all processes have to call it."""
        values = {name: repr(value) for name, value in anomaly.values.items()}  # NaN is not JSON.
        data_state = processes.joined(anomaly.data_state)
        return {"batch": anomaly.step - 1, "seed": self.config.train.seed, "data_state": data_state, **values}

    def tell_anomaly(self, anomaly: Anomaly) -> str:
        """Writes anomaly.json, and says what happened and where to return to."""
        step, values = anomaly.step, anomaly.values
        path, details = self.run.folder / "anomaly.json", self.described(anomaly)
        if processes.writes():
            write_atomically(path, json.dumps({"step": step, **details}, indent=2))
        self.checkpoints.wait()
        newest = self.checkpoints.newest()
        return (
            f"Stopped at step {step}: the loss is {values['train/loss']:g} (on average "
            f"{float(self.state.loss_average):g}), the gradient norm {values['train/grad_norm']:g}. "
            f"This was batch {step - 1} of seed {self.config.train.seed}; {path} has the details and the place in the "
            "data. "
            + (f"Return to {self.run.folder}@{newest}: " if newest else "There is no checkpoint yet: start again ")
            + "with --train.anomaly=skip, which goes on without such an update, with --train.anomaly=rollback, which "
            "leaves out what was read since the checkpoint, or with a lower --optimizer.learning_rate in a new run."
        )

    def close(self) -> None:
        """Ends bar, files and threads; `go` has reported what could not be written."""
        self.watchdog.close()
        self.close_writers()
        with contextlib.suppress(RunFolderError):
            self.ledger.close()
        with contextlib.suppress(CheckpointError):
            self.checkpoints.close()

    def close_writers(self) -> None:
        """Ends everything that `open_writers` has begun."""
        for writer in (*reversed(self.writers), *([self.samples] if self.samples else [])):
            with contextlib.suppress(RunFolderError):
                writer.close()


def _tell_skipped(run: Run) -> None:
    """Lists the records that were left out in the run folder, and says how many there are."""
    skipped, path = run.corpus.skipped, run.folder / "skipped_records.txt"
    write_atomically(path, "".join(f"{what}\n" for what in skipped))
    print(
        f"{len(skipped)} record(s) cannot be read and are left out (--data.bad_records=skip); {path} lists them. The "
        f"first: {skipped[0]}",
        file=sys.stderr,
    )


def _told(sample: dict[str, str]) -> str:
    """A sample in words."""
    if "reference" not in sample:
        return sample["prompt"] + sample["text"]
    return f"{sample['prompt']}\n  translated: {sample['text']}\n  reference:  {sample['reference']}"
