"""The run folder: made, found again, or refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from configs.convert import differences, from_dict, to_dict
from configs.derived import fills_in
from configs.schema import Config, ConfigError
from train import processes
from train.storage import RunFolderError, write_atomically

if TYPE_CHECKING:
    from train.checkpoint import Restored
    from train.data.sections import Corpus
    from train.data.tokenizer import Tokenizer

# What may change when a run goes on, because it does not change what is computed (or only after an anomaly).
MAY_CHANGE = (
    "mesh.", "data.prefetch", "data.directory", "data.bad_records", "train.keep", "train.wandb", "train.anomaly",
    "train.rollbacks", "train.spike_factor",
)  # fmt: skip


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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}. Start a new run with --run.") from error


def _with_vocabulary(config: Config, size: int) -> Config:
    return dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, vocab_size=size))
