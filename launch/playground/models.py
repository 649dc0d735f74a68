"""The networks that the page may show: the checkpoints of the command line, and the other steps of their runs."""

from __future__ import annotations

import collections
import dataclasses
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Any

from configs.derived import translates
from configs.schema import ConfigError
from launch.playground.reading import Reader
from train.checkpoint import CheckpointError, find, finished_steps
from train.data.tokenizer import Tokenizer

KEPT = 3  # Networks in memory at once.


@dataclasses.dataclass(frozen=True)
class Choice:
    """A checkpoint that can be shown: what --checkpoint calls it, and what the page does."""

    checkpoint: str
    title: str


class Models:
    """Restores what is asked for, and keeps what was used last. May be called from several threads."""

    def __init__(self, checkpoints: Sequence[str], restore: Callable[[str], Reader]) -> None:
        """Restores these checkpoints and looks for the other steps of their runs.

        Args:
          checkpoints: at least one, as --checkpoint takes them; the page begins with the first two.
          restore: called with what --checkpoint calls one.

        Raises:
          CheckpointError, ConfigError: one of them cannot be shown.
        """
        self._restore, self._lock = restore, threading.Lock()
        self._readers: collections.OrderedDict[str, Reader] = collections.OrderedDict()
        self.first = tuple(dict.fromkeys(checkpoints))
        self.choices = {choice.checkpoint: choice for spec in self.first for choice in choices(spec)}
        for checkpoint in self.first:
            self.reader(checkpoint)

    def prepare(self, goes_on: Callable[[], bool]) -> None:
        """Compile what the page will ask for first, while it is already answered; takes a while.

        Args:
          goes_on: asked before each program whether it is still wanted.
        """
        for checkpoint in self.first:
            self.reader(checkpoint).prepare(goes_on)

    def reader(self, checkpoint: str) -> Reader:
        """The network of one of the choices. Raises ConfigError if it is none of them."""
        if checkpoint not in self.choices:
            raise ConfigError(f"model={checkpoint!r} is not shown here; there are {', '.join(self.choices)}.")
        with self._lock:
            if checkpoint not in self._readers:
                self._readers[checkpoint] = self._restore(checkpoint)
            self._readers.move_to_end(checkpoint)
            while len(self._readers) > KEPT:
                self._readers.popitem(last=False)
            return self._readers[checkpoint]


def choices(checkpoint: str) -> list[Choice]:
    """The checkpoint itself and, if it is of a run, the steps of the run, the newest first."""
    try:
        folder, step = find(checkpoint)
    except CheckpointError:  # Not of a run: what others trained has no steps.
        return [Choice(checkpoint, checkpoint)]
    found = finished_steps(folder)
    steps = [Choice(f"{folder}@{other}", f"{folder.name}, step {other}") for other in reversed(found)]
    if checkpoint in [choice.checkpoint for choice in steps]:
        return steps
    newest = step == found[-1]
    return [Choice(checkpoint, f"{folder.name}, {'newest step' if newest else f'step {step}'}"), *steps]


def described(reader: Reader) -> dict[str, Any]:
    """What the page has to know about a network, as JSON has it."""
    config, tokenizer = reader.config, reader.tokenizer
    return {
        "name": config.name,
        "vocabulary": config.tokenizer.vocab_size,
        "longest": reader.longest,
        "kinds": reader.kinds,
        "translates": translates(config),
        "silences": reader.silences,
        "example": config.train.sample_prompt,
        "ends": tokenizer.ends,
        "first_spaces": tokenizer.first_spaces,
    }


def vocabulary(tokenizer: Tokenizer, size: int) -> bytes:
    """What the `size` tokens that a network knows stand for, in little-endian binary.

    `size` uint32 numbers of bytes, `size` uint8 that are 1 for tokens without text, then the bytes of all, one after
    another: the text, or the name of a token that has none.
    """
    texts = [tokenizer.token_bytes(id) for id in range(size)]
    special = bytes(not text for text in texts)
    named = [text or tokenizer.token_text(id).encode() for id, text in enumerate(texts)]
    return struct.pack(f"<{size}I", *map(len, named)) + special + b"".join(named)
