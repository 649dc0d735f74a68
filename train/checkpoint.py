"""Saving and restoring runs. Everything that the program knows about Orbax stands in this file.

A checkpoint holds all that a run needs to go on, and all that anyone needs to use the network:
`state` (arrays, under the names that they have in the train state), `data` (where the data iterator is),
`config` and `tokenizer` (JSON). Its arrays lie under plain names, not under classes of Optax or of ours,
so that it can be read without them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from configs import schema
from configs.convert import from_dict, to_dict
from configs.schema import Config
from train import checksums, processes, storage
from train.step import TrainState

if TYPE_CHECKING:
    from train.data.tokenizer import Tokenizer

BEST = "eval/bits_per_byte"
FOLDER = "checkpoints"
DAMAGED = "damaged"
KINDS = "a run folder, one of its steps as DIR@STEP, a Hugging Face folder, hf:ORG/NAME, gguf:FILE, or smollm2"
ITEMS = ("state", "data", "config", "tokenizer")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, found or read; the message names its folder and the way out."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """A trained network, without what only training needs."""

    config: Config
    params: Any  # what evaluation uses: the moving average where the run keeps one
    tokenizer: Tokenizer
    step: int


class Checkpoints:
    """The checkpoints of one run: the newest `train.keep` and the one with the fewest bits per byte stay.

    Saving is asynchronous: `save` copies the arrays, and a thread writes them. A save that was killed
    half-way leaves a folder with another name, which does not count and is removed by the next run.
    """

    def __init__(self, run_dir: Path, config: Config, tokenizer_json: str) -> None:
        import orbax.checkpoint as ocp

        _hush()
        policies = ocp.checkpoint_managers.preservation_policy
        self._run_dir, self._config, self._tokenizer_json = run_dir, config, tokenizer_json
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(config.train.keep),
                    policies.BestN(
                        get_metric_fn=lambda metrics: metrics[BEST],
                        reverse=True,  # it keeps the last n of what it sorted
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            best_fn=lambda metrics: metrics[BEST],  # without it the metrics are not written
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._sum_up),
        )
        with _clear_errors(f"{run_dir / FOLDER} cannot hold checkpoints"):
            if not storage.in_bucket(run_dir):
                (run_dir / FOLDER).mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(storage.absolute(run_dir / FOLDER), options=options, item_names=ITEMS)

    def newest(self) -> int | None:
        """The step of the newest finished checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, step: int, data_state: dict[str, Any], bits_per_byte: float | None) -> None:
        """Starts to write a checkpoint; `bits_per_byte` is that of an evaluation of this very step, if there was one.

        Raises CheckpointError if this save or the one before cannot be written.
        """
        self._save(_named(state), step, data_state, bits_per_byte)

    def save_params(self, params: Any, step: int) -> None:
        """Starts to write a checkpoint of parameters alone, from which a network can be used but not trained on.

        Raises CheckpointError if it cannot be written.
        """
        self._save({"params": _named(params)}, step, {}, None)

    def _save(self, arrays: dict[str, Any], step: int, data_state: dict[str, Any], bits_per_byte: float | None) -> None:
        import orbax.checkpoint as ocp

        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(arrays),
            data=ocp.args.JsonSave(data_state),
            config=ocp.args.JsonSave(to_dict(self._config)),
            tokenizer=ocp.args.JsonSave(json.loads(self._tokenizer_json)),
        )
        metrics = None if bits_per_byte is None else {BEST: bits_per_byte}
        with self._writing():
            self._manager.wait_until_finished()  # Whose files `_sum_up` sums is a question of which save is under way.
            self._saving = step
            self._manager.save(step, args=items, metrics=metrics, force=True)

    def _sum_up(self) -> None:
        """Called when all files of a checkpoint are written, before it counts as one."""
        if processes.writes():
            folder = self._run_dir / FOLDER
            for place in (*folder.glob(f"{self._saving}.orbax-checkpoint-tmp*"), self._folder(self._saving)):
                if place.exists():
                    storage.retried(functools.partial(checksums.write, place))

    def newest_good(self) -> int | None:
        """The step of the newest checkpoint whose files are what was written, or None if there is no checkpoint.

        Damaged ones after it are put into the folder `damaged` of the run, and it is said that they are.

        Raises:
          CheckpointError: there are checkpoints, and all are damaged.
        """
        damaged: dict[int, str] = {}
        good = None
        if processes.writes():
            for step in reversed(finished_steps(self._run_dir)):
                if (what := checksums.damage(self._folder(step))) is None:
                    good = step
                    break
                damaged[step] = what
            if good is not None:
                for step, what in damaged.items():
                    aside = _put_aside(self._folder(step))
                    print(f"The checkpoint of step {step} is damaged ({what}); it is now {aside}.", file=sys.stderr)
        good, number = processes.first_says((good, len(damaged)))
        if number and good is None:
            raise CheckpointError(
                f"All {number} checkpoints in {self._run_dir / FOLDER} are damaged (the newest: "
                f"{next(iter(damaged.values()), 'process 0 says what')}). Mend or remove them, or choose another "
                "folder with --run."
            )
        if number:
            self._manager.reload()
        return good

    def _folder(self, step: int) -> Path:
        return self._run_dir / FOLDER / str(step)

    def check(self) -> None:
        """Raises CheckpointError if a save that ended in the meantime failed."""
        with self._writing():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Returns when the last save is on disk. Raises CheckpointError if it failed."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and ends the threads. Raises CheckpointError if the save failed."""
        with self._writing():
            self._manager.close()

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """State and data state of a checkpoint.

        `like` is a state of `jax.ShapeDtypeStruct` leaves with shardings; they need not be those of the
        devices that the checkpoint was written on. Raises CheckpointError if the checkpoint is damaged.
        """
        folder = self._folder(step)
        named = _read_arrays(folder, _named(like))
        return _unnamed(named, like), _read_json(folder, "data")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with _clear_errors(f"A checkpoint could not be written to {self._run_dir / FOLDER}"):
            yield


def _put_aside(folder: Path) -> Path:
    """Moves a damaged checkpoint to where it is neither read nor deleted; returns the place."""
    damaged = folder.parent.parent / DAMAGED
    aside = next(place for number in itertools.count() if not (place := damaged / f"{folder.name}.{number}").exists())
    with _clear_errors(f"{folder} is damaged and cannot be put into {damaged}"):
        storage.move(folder, aside)
    return aside


def restore_params(spec: str | Path, mesh: jax.sharding.Mesh | None = None) -> Restored:
    """The network that `spec` names (KINDS): of a run, that of its newest checkpoint.

    Only the parameters are read, in whatever way the run was spread over devices: onto `mesh`, or without
    one onto all devices of this process, each with a whole copy. Raises CheckpointError if there is no such checkpoint.
    """
    from model.sharding import make_mesh

    mesh = mesh or make_mesh(schema.Mesh(data=-1, fsdp=1, tensor=1), jax.local_devices())
    return _import(str(spec), mesh) if is_foreign(spec) else _restore(spec, mesh)


def is_foreign(spec: str | Path) -> bool:
    """Whether `spec` names a checkpoint of another program. Raises CheckpointError if it is none that can be read."""
    from model import exchange

    try:
        return exchange.is_foreign(str(spec))
    except exchange.ExchangeError as error:
        raise CheckpointError(f"{spec}: {error}") from error


def described(spec: str | Path) -> tuple[Config, Tokenizer]:
    """Config and tokenizer of the network that `spec` names; reads no weights. Raises CheckpointError."""
    from train.data.tokenizer import Tokenizer

    if is_foreign(spec):
        imported = _import(str(spec), None)
        return imported.config, imported.tokenizer
    _hush()
    run_dir, step = find(spec)
    folder = run_dir / FOLDER / str(step)
    tokenizer = Tokenizer.from_json(json.dumps(_read_json(folder, "tokenizer")), str(folder))
    return from_dict(_read_json(folder, "config")), tokenizer


def _import(spec: str, mesh: jax.sharding.Mesh | None) -> Restored:
    """The network in a checkpoint of another program; without a mesh, all but its weights."""
    from model import exchange
    from train.data.chat import ChatTemplate
    from train.data.sections import DataError
    from train.data.tokenizer import Tokenizer

    try:
        imported = exchange.read(spec, mesh) if mesh else exchange.describe(spec)
        if imported.tokenizer_json is None:
            raise exchange.ExchangeError("it has no tokenizer.json, which the library transformers writes.")
        chat = ChatTemplate(**imported.chat) if imported.chat else None
        tokenizer = Tokenizer.from_json(imported.tokenizer_json, "its tokenizer", imported.ends, imported.start, chat)
    except (exchange.ExchangeError, DataError) as error:
        raise CheckpointError(f"{spec}: {error}") from error
    known = imported.config.tokenizer.vocab_size
    if tokenizer.size > known:
        raise CheckpointError(f"{spec}: its tokenizer has {tokenizer.size} tokens, and its network knows {known}.")
    return Restored(imported.config, imported.params, tokenizer, 0)


def _restore(spec: str | Path, mesh: jax.sharding.Mesh) -> Restored:
    """The network in a run folder."""
    from model import build
    from model.sharding import parameter_shapes
    from train.optimizer import evaluation_params, make_optimizer
    from train.step import state_shape

    _hush()
    run_dir, step = find(spec)
    folder = run_dir / FOLDER / str(step)
    _check_undamaged(folder)
    config, tokenizer = described(spec)
    module = build(config)

    shape = state_shape(module, make_optimizer(config, parameter_shapes(module)), config, mesh)
    needed = {"params"}
    if config.optimizer.ema_decay:
        needed.add("ema")
    if config.optimizer.name == "schedule_free":
        needed.add("opt_state")
    unneeded = {field.name: None for field in dataclasses.fields(shape) if field.name not in needed}
    like = dataclasses.replace(shape, **unneeded)
    params = evaluation_params(config, _unnamed(_read_arrays(folder, _named(like)), like))
    return Restored(config, params, tokenizer, step)


def find(spec: str | Path) -> tuple[Path, int]:
    """The run folder and the step that `DIR` (its newest checkpoint) or `DIR@STEP` means.

    Raises CheckpointError if DIR is no run folder, or has no such checkpoint.
    """
    run_dir, step = storage.place(spec), None
    with storage.reading(run_dir):
        if (match := re.fullmatch(r"(.+)@(\d+)", str(spec))) and not run_dir.exists():
            run_dir, step = storage.place(match[1]), int(match[2])
        there = run_dir.is_dir()
    if not there:
        raise CheckpointError(
            f"There is no run folder {run_dir}; `uv run -m launch.train --run={run_dir}` makes one. "
            f"A checkpoint is {KINDS}."
        )
    steps = finished_steps(run_dir)
    if not steps:
        is_run = (run_dir / "config.json").is_file()
        what = "has no finished checkpoint yet" if is_run else "is not a run folder: it has no checkpoints"
        raise CheckpointError(f"{run_dir} {what}.")
    if step is not None and step not in steps:
        raise CheckpointError(f"{run_dir} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}.")
    return run_dir, steps[-1] if step is None else step


def finished_steps(run_dir: Path) -> list[int]:
    """Steps of the finished checkpoints of a run, in ascending order; none where there is no such folder."""
    from orbax.checkpoint.path import step as step_lib

    return sorted(step_lib.checkpoint_steps(storage.absolute(run_dir / FOLDER)))


def _check_undamaged(folder: Path) -> None:
    with _damaged(folder):
        if what := checksums.damage(folder):
            raise ValueError(what)


def _read_arrays(folder: Path, like: dict[str, Any]) -> dict[str, Any]:
    """The arrays that `like` names, on the devices that its shardings name; the others are not read."""
    import orbax.checkpoint as ocp

    args = ocp.args.PyTreeRestore(
        item=like, restore_args=ocp.checkpoint_utils.construct_restore_args(like), partial_restore=True
    )
    alone = _alone()
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with _damaged(folder), ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
        return reader.restore(storage.absolute(folder / "state"), args=args)


def _read_json(folder: Path, item: str) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    alone = _alone()
    handler = ocp.JsonCheckpointHandler(multiprocessing_options=alone)
    with _damaged(folder), ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
        return reader.restore(storage.absolute(folder / item), args=ocp.args.JsonRestore())


def _alone() -> Any:
    """For reading: each process reads what its own devices need, without waiting for others, which may not read."""
    import orbax.checkpoint as ocp

    this = jax.process_index()
    return ocp.options.MultiprocessingOptions(this, active_processes={this}, barrier_sync_key_prefix=f"alone{this}")


def _named(tree: Any) -> dict[str, Any]:
    """The leaves of any tree as nested dictionaries: `params/layers/attention/query/kernel` and so on."""
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        *folders, name = _names(path)
        inner = named
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[name] = leaf
    return named


def _unnamed(named: dict[str, Any], like: Any) -> Any:
    """The inverse of `_named`: a tree like `like`."""

    def leaf(path: tuple[Any, ...], _: Any) -> Any:
        inner: Any = named
        for name in _names(path):
            inner = inner[name]
        return inner

    return jax.tree_util.tree_map_with_path(leaf, like)


def _names(path: tuple[Any, ...]) -> list[str]:
    return jax.tree_util.keystr(path, simple=True, separator="/").split("/")


@contextlib.contextmanager
def _damaged(folder: Path) -> Iterator[None]:
    run_dir = folder.parent.parent
    others = [step for step in finished_steps(run_dir) if str(step) != folder.name]
    advice = f"the run also has {', '.join(f'{run_dir}@{step}' for step in others)}" if others else "it is the only one"
    with _clear_errors(f"The checkpoint {folder} is damaged or of another format ({advice})"):
        yield


@contextlib.contextmanager
def _clear_errors(what: str) -> Iterator[None]:
    """Turns what Orbax, TensorStore and the file system raise into one CheckpointError of one line."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # TensorStore's errors have no class of their own
        why, helps = storage.cause(error)
        if helps:
            why += f". {helps} or choose another place with --run; the newest checkpoint is as good as it was."
        raise CheckpointError(f"{what}: {why}") from error


def _hush() -> None:
    """Keeps what Orbax logs off the terminal; what goes wrong is raised as an error anyway."""
    logger = logging.getLogger("absl")
    if _not_orbax not in logger.filters:
        logger.addFilter(_not_orbax)


def _not_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in Path(record.pathname).parts
