"""The run folder: made, found again, or refused."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from configs.convert import differences, fills_in, from_dict, to_dict
from configs.schema import Config, ConfigError
from train import processes

if TYPE_CHECKING:
    from train.checkpoint import Restored
    from train.data.sections import Corpus
    from train.data.tokenizer import Tokenizer

# What may change when a run goes on, because it does not change what is computed (or only after an anomaly).
MAY_CHANGE = (
    "mesh.", "data.prefetch", "data.directory", "data.bad_records", "train.keep", "train.wandb", "train.anomaly",
    "train.rollbacks", "train.spike_factor",
)  # fmt: skip

# Errors that pass where storage is far away, and the seconds between two tries.
PASSING = (errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT)
PAUSES = (0.5, 2.0, 8.0)


class RunFolderError(RuntimeError):
    """A file of the run that cannot be written or read; the message names it and the way out."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder, made or found again, and what it was made from."""

    config: Config  # with the vocabulary's real size
    folder: Path
    corpus: Corpus
    tokenizer: Tokenizer


def open_run(config: Config, folder: Path) -> Run:
    """Finds the run in `folder`, if it is that of `config` and its text is still the same, or makes one there.

    Of several processes, process 0 does, and the others read what it wrote.

    Raises ConfigError with the differences if it is that of another config; DataError if the text is another;
    RunFolderError if the processes don't see the same folder.
    """
    from train.data.sources import open_corpus

    if not processes.writes():
        processes.wait_for_all()  # Until the text has been prepared and the folder is there.
        return _join_run(config, folder, open_corpus(config.data))
    run = _begin_run(config, folder, open_corpus(config.data))
    processes.wait_for_all()
    return run


def _begin_run(config: Config, folder: Path, corpus: Corpus) -> Run:
    from train.checkpoint import described, finished_steps
    from train.data.tokenizer import make_tokenizer

    if not finished_steps(folder):  # Whatever a start that failed has left here is no run to go on with.
        asked = config
        if config.tokenizer.source == "checkpoint":  # Its network may know more tokens than its tokenizer has.
            tokenizer = described(config.init_from)[1]
        else:
            tokenizer = make_tokenizer(config.tokenizer, corpus, masked=fills_in(config))
            config = _with_vocabulary(config, tokenizer.size)
        origin = {"corpus": corpus.record(), "vocab_size": asked.tokenizer.vocab_size}
        write_atomically(folder / "data.json", json.dumps(origin))
        write_atomically(folder / "tokenizer.json", tokenizer.to_json())
    else:
        saved, origin = (_read_json(folder / name) for name in ("config.json", "data.json"))
        saved = from_dict(saved)
        if config.tokenizer.source != "bpe" or config.tokenizer.vocab_size == origin["vocab_size"]:
            config = _with_vocabulary(config, saved.tokenizer.vocab_size)
        changed = [line for line in differences(config, saved) if not line.startswith(MAY_CHANGE)]
        if changed:
            raise ConfigError(
                f"The run in {folder} has another config; give it this one, or choose another folder with --run:\n  "
                + "\n  ".join(changed)
            )
        tokenizer = _saved_tokenizer(folder, corpus)
    write_atomically(folder / "config.json", json.dumps(to_dict(config), indent=2))
    return Run(config, folder, corpus, tokenizer)


def _join_run(config: Config, folder: Path, corpus: Corpus) -> Run:
    """The run that process 0 has just opened."""
    names = ("config.json", "data.json", "tokenizer.json")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise RunFolderError(
            f"Process {jax.process_index()} does not see {folder / missing[0]}, which process 0 has written: "
            "all processes need the same folder, on storage that they share; choose one with --run."
        )
    saved = from_dict(_read_json(folder / "config.json"))
    changed = differences(_with_vocabulary(config, saved.tokenizer.vocab_size), saved)
    if changed:
        raise ConfigError(
            f"Process {jax.process_index()} was started with other settings than process 0; give all the same:\n  "
            + "\n  ".join(changed)
        )
    return Run(saved, folder, corpus, _saved_tokenizer(folder, corpus))


def _saved_tokenizer(folder: Path, corpus: Corpus) -> Tokenizer:
    """That of the run, whose text has to be that of `corpus` still."""
    from train.data.sections import check_unchanged
    from train.data.tokenizer import Tokenizer

    check_unchanged(corpus, _read_json(folder / "data.json")["corpus"])
    path = folder / "tokenizer.json"
    return Tokenizer.from_json(path.read_text("utf-8"), str(path))


def save_run(folder: Path, restored: Restored) -> None:
    """Writes a network that was not trained here as a run folder: its only checkpoint, of step 0, is its parameters.

    Raises CheckpointError or RunFolderError where it cannot be written.
    """
    from train.checkpoint import Checkpoints

    checkpoints = Checkpoints(folder, restored.config, restored.tokenizer.to_json())
    checkpoints.save_params(restored.params, restored.step)
    checkpoints.close()
    write_atomically(folder / "tokenizer.json", restored.tokenizer.to_json())
    write_atomically(folder / "config.json", json.dumps(to_dict(restored.config), indent=2))


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds the run folder for this process: two that train in one would overwrite each other's files.

    A killed process holds nothing. Raises RunFolderError if another one holds it.
    """
    try:
        import fcntl
    except ImportError:  # Not a POSIX system: nothing is held.
        yield
        return
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    with lock:
        try:
            if processes.writes():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunFolderError(
                f"Another process is training in {folder}: wait for it, stop it, or choose another folder with --run."
            ) from error
        yield


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file as a whole: a reader, or a run after a kill, sees the old text or the new one.

    Raises RunFolderError where it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")

    def write() -> None:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)

    with writing(path):
        retried(write)


def retried(write: Callable[[], None]) -> None:
    """Calls what writes a file as a whole, again where the storage did not answer, as one that is far away may.

    Raises the OSError of the last try, or at once one that waiting does not mend, such as a full disk.
    """
    for pause in PAUSES:
        try:
            return write()
        except OSError as error:
            if error.errno not in PASSING:
                raise
            print(f"Tried again in {pause:g} s: {error}", file=sys.stderr)
        time.sleep(pause)
    return write()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError into one clear RunFolderError about `path`."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"The run folder cannot be written: {path}: {error.strerror or error}. "
            "Make room or choose another place with --run; the same command goes on from the newest checkpoint."
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}. Start a new run with --run.") from error


def _with_vocabulary(config: Config, size: int) -> Config:
    return dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, vocab_size=size))
