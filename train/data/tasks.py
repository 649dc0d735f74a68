"""Tasks that are made up as they are needed: rows of random words of which some follow from those before them.

A row is one example. All of it is read, and only the words that can be known are to be predicted. Example number i is a
function of the task and of i alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from train.data.sections import Corpus, DataError, Section, digest
from train.data.tokenizer import Tokenizer

TRAIN, HELD_OUT = 2**20, 512
CACHED_EXAMPLES = 4096


@dataclass(frozen=True)
class Example:
    """Words, T of them, as places in their task's `words`, and which of them can be known from those before."""

    words_T: np.ndarray
    asked_T: np.ndarray


class Task(Protocol):
    """What makes examples."""

    @property
    def words(self) -> tuple[str, ...]:
        """All words that there are."""
        ...

    def example(self, random: np.random.Generator) -> Example:
        """Another example, whose words depend on the numbers that `random` draws and on nothing else."""
        ...


class Examples:
    """Examples of a task by number; as sections, each is its words with a space before every one."""

    def __init__(self, task: Task, count: int, stream: int) -> None:
        self.task, self._count, self._stream = task, count, stream

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int, /) -> Section:
        return Section("".join(f" {self.task.words[word]}" for word in self.example(index).words_T), last=False)

    def example(self, index: int) -> Example:
        """The example of that number."""
        return self.task.example(np.random.default_rng([self._stream, index]))


def open_task(task: Task, description: str) -> Corpus:
    """A corpus of a task's examples: a million to learn from and 512 others that are held out."""
    train, held_out = Examples(task, TRAIN, stream=0), Examples(task, HELD_OUT, stream=1)
    fingerprint = digest([train[0].text, held_out[0].text, description])
    return Corpus(train, held_out, fingerprint, description, vocabulary="".join(f" {word}" for word in task.words))


def syllables(count: int) -> tuple[str, ...]:
    """So many words of two letters: ba, da, fa, ..., be, de, ..."""
    return tuple(consonant + vowel for vowel in "aeiou" for consonant in "bdfghjklmnprstvwz")[:count]


def number_behind(source: str, rest: str, default: int, least: int, most: int) -> int:
    """The number in `NAME:NUMBER`, or `default` where there is none.

    Raises:
      DataError: it is no number from `least` to `most`.
    """
    if not rest:
        return default
    if not rest.isdecimal() or not least <= int(rest) <= most:
        raise DataError(f"--data.source={source}: {rest!r} must be a whole number from {least} to {most}")
    return int(rest)


# What is read, with the end of text before it, and which of the tokens but the first count.
TokenExample = tuple[np.ndarray, np.ndarray]


class TokenizedExamples:
    """Examples as int32 tokens."""

    def __init__(self, examples: Examples, tokenizer: Tokenizer) -> None:
        numbers = [tokenizer.encode(f" {word}") for word in examples.task.words]
        if any(len(tokens) != 1 for tokens in numbers):
            raise DataError("each word of a made-up task has to be one token: use --tokenizer.source=words")
        self._examples, self._beginning = examples, tokenizer.end_of_text
        self._token_of = np.array(numbers, np.int32)[:, 0]
        self._tokens = lru_cache(maxsize=CACHED_EXAMPLES)(self._tokenize)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> TokenExample:
        return self._tokens(index)

    def _tokenize(self, index: int) -> TokenExample:
        example = self._examples.example(index)
        tokens = np.concatenate([[self._beginning], self._token_of[example.words_T]]).astype(np.int32)
        return tokens, example.asked_T


class TaskStream:
    """The examples `first`, `first + stride`, ..., one in each row, up to example `end` if it is given.

    Attributes:
      place: the example that is read next, as a list for JSON.
    """

    def __init__(
        self, read: Callable[[int], TokenExample], length: int, first: int, stride: int, end: int | None = None
    ) -> None:
        self._read, self._length, self._stride, self._end = read, length, stride, end
        self.place = [first]

    def exhausted(self) -> bool:
        """Whether there is no further example."""
        return self._end is not None and self.place[0] >= self._end

    def next_row(self) -> dict[str, np.ndarray]:
        """The next row: inputs, targets, segments, positions and weights, each [T] int32; empty if there is none.

        Raises:
          DataError: the row is too short for an example.
        """
        row = {
            name: np.zeros(self._length, np.int32) for name in ("inputs", "targets", "segments", "positions", "weights")
        }
        if self.exhausted():
            return row
        tokens, asked_T = self._read(self.place[0])
        T = len(asked_T)
        if self._length < T:
            raise DataError(f"--data.length={self._length} is too short for an example of this task: it has {T} words")
        row["inputs"][:T], row["targets"][:T], row["weights"][:T] = tokens[:-1], tokens[1:], asked_T
        row["segments"][:T], row["positions"][:T] = 1, np.arange(T)
        self.place = [self.place[0] + self._stride]
        return row
