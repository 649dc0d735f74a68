"""Several runs in one compiled program: those that differ in seeds and in numbers that no shape depends on.

The step is that of `train/step.py`, over states stacked on a leading axis, with the numbers that differ as arrays in
the config. Each run gets the batches of its own seed, and comes to what it would have come to alone. Several steps are
one call of the program: between two calls, Python and the dispatch to devices take as long as a small network's step.

Shapes: R runs, K steps of one call.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from configs.convert import leaves
from configs.derived import in_use
from configs.schema import SECTIONS, Config, ConfigError
from model import build
from model.sharding import parameter_shapes
from train.data.pipeline import held_out_batches, train_batches
from train.data.sections import Corpus
from train.data.tokenizer import Tokenizer
from train.evaluate import evaluation_of, evaluation_sums
from train.optimizer import evaluation_params, make_optimizer
from train.step import TrainState, initial_state, make_train_step
from train.stop import Stopped
from train.unfinished import Unfinished

# Settings in which runs of one program may differ; whether a number is 0 decides what is computed for most of them.
NUMBERS = (
    "train.seed", "optimizer.learning_rate", "optimizer.weight_decay", "optimizer.warmup_steps",
    "optimizer.decay_fraction", "optimizer.end_fraction", "optimizer.beta1", "optimizer.beta2", "optimizer.epsilon",
    "optimizer.clip_norm", "optimizer.ema_decay", "train.z_loss", "train.label_smoothing", "train.spike_factor",
    "model.dropout",
)  # fmt: skip
MOST_STEPS = 16  # Of one call.
NEVER_OFF = ("train.seed", "optimizer.learning_rate", "optimizer.warmup_steps", "optimizer.end_fraction")
Line = dict[str, float]


def program_of(config: Config) -> tuple[Any, ...]:
    """What is the same in all runs that can share a program: all but NUMBERS, and which of these are 0."""
    return tuple(
        (name, name in NEVER_OFF or in_use(value)) if name in NUMBERS else (name, value)
        for name, _, value in leaves(config)
        if name != "name"
    )


def train_together(
    configs: Sequence[Config],
    corpus: Corpus,
    tokenizer: Tokenizer,
    on_step: Callable[[], object] = lambda: None,
    on_evaluation: Callable[[list[list[Line]]], bool] = lambda lines: False,
    free: Collection[str] = (),
    unfinished: Unfinished | None = None,
) -> list[list[Line]]:
    """Trains a run for each config and returns what each would have written to its metrics.jsonl, timings aside.

    Runs are spread over this process's devices if their number allows. A run that meets an anomaly leaves that update
    out, as with train.anomaly=skip; with `stop` its lines end there, with `train/anomaly` 1, and it has no evaluation.

    Args:
      configs: of one program (`program_of`), with the vocabulary's real size.
      on_step: called after each step that was dispatched; several times in a row where they were dispatched at once.
        If it raises Stopped, the state is saved first.
      on_evaluation: called after each evaluation with the lines so far; training ends there if it says so.
      free: NUMBERS that the compiled program is to leave open even if all configs agree on them, so that it serves
        the next ones too.
      unfinished: where the state is saved now and then, and from which the runs go on where it has been: they come to
        the same numbers. `on_evaluation` is then called again with what was known at the evaluations before.

    Raises:
      ConfigError: configs of several programs, or runs that start from a checkpoint.
      CheckpointError: the state cannot be saved, or all that was saved is damaged.
    """
    config, R = configs[0], len(configs)
    if len({program_of(other) for other in configs}) > 1:
        raise ConfigError("Only runs that differ in seeds and numbers can be trained together.")
    if config.init_from:
        raise ConfigError(f"--init_from={config.init_from}: runs that are compared start from random weights.")
    differing = _differing(configs, free)
    spread, alike = _shardings(R)
    state_of, step_of = _program(config, tokenizer, differing)
    # Runs of one seed read the same batches; where all do, there is one copy of them.
    seeds = list(dict.fromkeys(config.train.seed for config in configs))
    streams = {seed: train_batches(corpus, tokenizer, _seeded(configs, seed)) for seed in seeds}
    stacked = len(seeds) > 1
    values = {name: jax.device_put(value_R, spread) for name, value_R in differing.items()}
    state = jax.jit(jax.vmap(state_of, axis_size=R), out_shardings=spread)(values)
    steps_all = jax.jit(jax.vmap(_several(step_of), (0, 0, 0 if stacked else None)), donate_argnums=1)
    sums_of = evaluation_sums(build(config), tokenizer.byte_lengths)
    evaluate = jax.jit(jax.vmap(lambda state, batch: sums_of(evaluation_params(config, state), batch), (0, None)))

    def next_batches(count: int) -> dict[str, jax.Array]:
        """Those of `count` steps: [K, B, T], or [R, K, B, T] where runs read different ones."""
        of_seed = {}
        for seed, stream in streams.items():
            batches = [next(stream) for _ in range(count)]
            of_seed[seed] = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
        if not stacked:
            return jax.device_put(of_seed[seeds[0]], alike)
        rows = [of_seed[config.train.seed] for config in configs]
        return jax.device_put({name: np.stack([row[name] for row in rows]) for name in rows[0]}, spread)

    lines: list[list[Line]] = [[] for _ in configs]
    stopped = np.zeros(R, bool)
    pending: tuple[int, Any] | None = None

    def settle() -> None:
        """Reads the metrics of the steps that were dispatched last; the next ones are on their way."""
        nonlocal pending
        if pending is None:
            return
        (last, metrics), pending = pending, None
        found_RK = {name: np.asarray(value_RK, np.float64) for name, value_RK in metrics.items()}
        for place, step in enumerate(range(last - at_once + 1, last + 1)):
            found = {name: value_RK[:, place] for name, value_RK in found_RK.items()}
            logs = step == 1 or step % config.train.log_every == 0 or step == config.train.steps
            for run in np.flatnonzero(~stopped & (logs | (found["train/anomaly"] != 0))):
                lines[run].append({"step": step, **{name: float(value_R[run]) for name, value_R in found.items()}})
            if config.train.anomaly == "stop":
                stopped[:] |= found["train/anomaly"] != 0

    at_once, begun = _steps_at_once(config), 0
    if unfinished and (found := unfinished.restore(config, _shape_of(state))):
        state, place = found
        begun, lines, stopped[:] = place["step"], place["lines"], place["stopped"]
        for seed, stream in streams.items():
            stream.set_state(place["streams"][str(seed)])
        for _ in range(begun):
            on_step()
        for so_far in _evaluations(lines):
            on_evaluation(so_far)
    for step in range(begun + at_once, config.train.steps + 1, at_once):
        state, metrics = steps_all(values, state, next_batches(at_once))
        settle()
        pending = step, metrics
        stopping: Stopped | None = None
        for _ in range(at_once):
            try:
                on_step()
            except Stopped as asked:
                stopping = asked
        every = config.train.eval_every
        if step == config.train.steps or (every and step % every == 0):
            settle()
            batches = held_out_batches(corpus, tokenizer, config)
            some = itertools.islice(batches, config.train.eval_batches or None)
            total_R3 = np.zeros((R, 3))
            for batch in some:
                total_R3 += np.asarray(evaluate(state, jax.device_put(batch, alike)), np.float64)
            for run in np.flatnonzero(~stopped):
                lines[run].append({"step": step, **evaluation_of(total_R3[run])})
            if on_evaluation(lines) or stopped.all():
                break
        if unfinished and step < config.train.steps and (stopping or unfinished.is_due()):
            settle()
            places = {str(seed): stream.get_state() for seed, stream in streams.items()}
            place = {"step": step, "lines": lines, "stopped": stopped.tolist(), "streams": places}
            unfinished.save(config, state, step, place)
        if stopping and step < config.train.steps:
            raise stopping
    return lines


def _shape_of(state: TrainState) -> TrainState:
    """Shape, dtype and sharding of each leaf, which outlive the state's own donation."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def _evaluations(lines: Sequence[Sequence[Line]]) -> Iterator[list[list[Line]]]:
    """The lines as they were at each evaluation."""
    steps = {line["step"] for own in lines for line in own if any(name.startswith("eval/") for name in line)}
    for step in sorted(steps):
        yield [[line for line in own if line["step"] <= step] for own in lines]


def _program(
    config: Config, tokenizer: Tokenizer, differing: dict[str, np.ndarray]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """values -> state before the first step, and (values, state, batch) -> (state, metrics), of one run."""
    shapes = parameter_shapes(build(config))

    def parts(values: dict[str, jax.Array]) -> tuple[Any, Any, Config]:
        own = _with_values(config, values)
        return build(own), make_optimizer(own, shapes), own

    def state_of(values: dict[str, jax.Array]) -> Any:
        module, optimizer, own = parts(values)
        return initial_state(module, optimizer, own)(jax.random.key(own.train.seed), {})

    def step_of(values: dict[str, jax.Array], state: Any, batch: Any) -> Any:
        return make_train_step(*parts(values), tokenizer.byte_lengths)(state, batch)

    return state_of, step_of


def _several(step_of: Callable[..., Any]) -> Callable[..., Any]:
    """(values, state, batches [K, ...]) -> (state, metrics [K]): one step after another."""
    return lambda values, state, batches: jax.lax.scan(
        lambda state, batch: step_of(values, state, batch), state, batches
    )


def _steps_at_once(config: Config) -> int:
    """How many steps K a call takes, so that calls end where evaluations are."""
    every = math.gcd(config.train.steps, config.train.eval_every)  # Without evaluations on the way, all of the steps.
    return max(count for count in range(1, min(MOST_STEPS, every) + 1) if every % count == 0)


def _differing(configs: Sequence[Config], free: Collection[str]) -> dict[str, np.ndarray]:
    """The settings that are not the same in all configs or are free, each as [R] float32, seeds as int32."""
    all_values = [{name: value for name, _, value in leaves(config)} for config in configs]
    return {
        name: np.array([values[name] for values in all_values], np.int32 if name == "train.seed" else np.float32)
        for name in NUMBERS
        if len({values[name] for values in all_values}) > 1
        or (name in free and (name in NEVER_OFF or in_use(all_values[0][name])))
    }


def _with_values(config: Config, values: dict[str, jax.Array]) -> Config:
    """The config with numbers that only the compiled program knows, which `configs.convert.override` would refuse."""
    for section in SECTIONS:
        own = {name.split(".")[1]: value for name, value in values.items() if name.startswith(f"{section}.")}
        config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **own)})
    return config


def _seeded(configs: Sequence[Config], seed: int) -> Config:
    return next(config for config in configs if config.train.seed == seed)


def _shardings(runs: int) -> tuple[jax.sharding.NamedSharding, jax.sharding.NamedSharding]:
    """How what each run has of its own lies on the devices, and what all share."""
    devices = jax.local_devices()
    devices = devices[: math.gcd(runs, len(devices))]
    mesh = jax.make_mesh((len(devices),), ("runs",), (jax.sharding.AxisType.Auto,), devices=devices)
    return jax.NamedSharding(mesh, jax.P("runs")), jax.NamedSharding(mesh, jax.P())
