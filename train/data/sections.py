"""Sections: the pieces of text that are shuffled, packed and learned from.

A long document is cut at line ends into sections whose concatenation is exactly the document.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

import numpy as np


class DataError(ValueError):
    """Text that cannot be read: the message names the source, what is wrong with it and what would help."""


class RecordError(DataError):
    """One record that cannot be read, among others that can; the message names its file and offset."""


class BadRecords:
    """What is done about records that cannot be read; `choice` is `data.bad_records`.

    Attributes:
      skipped: a sentence for each that was left out.
    """

    def __init__(self, choice: str) -> None:
        self._skips = choice == "skip"
        self.skipped: list[str] = []

    @contextlib.contextmanager
    def tried(self) -> Iterator[None]:
        """Around what reads one record and takes note of it: where that fails, it is left out, or DataError raised."""
        try:
            yield
        except RecordError as error:
            if not self._skips:
                raise DataError(f"{error}. --data.bad_records=skip leaves out what cannot be read") from None
            self.skipped.append(str(error))


@dataclass(frozen=True)
class Section:
    """A piece of text; `last` says that its document ends with it.

    A pair to translate is a section as well: `text` is the translation of `source`, which is empty otherwise.
    """

    text: str
    last: bool
    source: str = ""


class Sections(Protocol):
    """Sections by number, in an order that never changes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Section: ...


@dataclass(frozen=True)
class Corpus:
    """Text to learn from and text to be judged on; no section is in both.

    `fingerprint` is a SHA-256 (hex) that changes with the text; `files` holds one for each file read, if it was files.
    `vocabulary` is a text with every word that there is, if that is known before anything is read. `skipped` has a
    sentence for each record that was left out since it cannot be read.
    """

    train: Sections
    held_out: Sections
    fingerprint: str
    description: str
    files: dict[str, str] = field(default_factory=dict)
    vocabulary: str = ""
    skipped: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """What `check_unchanged` needs to recognize this text again; goes into JSON."""
        return {"description": self.description, "fingerprint": self.fingerprint, "files": self.files}


def check_unchanged(corpus: Corpus, recorded: dict[str, Any]) -> None:
    """Compares a corpus with the `Corpus.record()` of an earlier one.

    Raises:
      DataError: the text is another one; names the first file that changed, went away or came in addition.
    """
    if corpus.fingerprint == recorded["fingerprint"]:
        return
    before: dict[str, str] = recorded["files"]
    now = corpus.files
    advice = "restore the text that the run began with, or start a new run with --run"
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            what = "is gone" if name not in now else "is new" if name not in before else "has changed"
            raise DataError(f"the file {name} {what} since the run began; {advice}")
    raise DataError(
        f"the text has changed since the run began: it was {recorded['description']} "
        f"({recorded['fingerprint'][:12]}) and is {corpus.description} ({corpus.fingerprint[:12]}); {advice}"
    )


def digest(content: object) -> str:
    """SHA-256 (hex) of something that goes into JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def next_cut(data: bytes, size: int) -> int:
    """Where the first section of the UTF-8 bytes `data` ends: at most `size` bytes on, unless one character is longer.

    The last line end is preferred; text without one is cut between two characters.
    """
    if len(data) <= size:
        return len(data)
    newline = data.rfind(b"\n", 0, size)
    if newline >= 0:
        return newline + 1
    cut = size
    while cut > max(size - 4, 1) and data[cut] & 0xC0 == 0x80:  # in the middle of a character
        cut -= 1
    return cut


def cuts(data: bytes, size: int) -> list[int]:
    """Ends of the sections of a whole document; empty for an empty one."""
    ends, start = [], 0
    while start < len(data):
        start += next_cut(data[start : start + size + 1], size)
        ends.append(start)
    return ends


def hold_out_tails(document_N: np.ndarray, share: float, source: str) -> np.ndarray:
    """Which sections are held out, as [N] bool: a tail of each document, such that together they are `share` of all.

    Rounding carries over from document to document: of many documents with one section each, a share of 0.05 holds
    out every twentieth. At least one section is held out and at least one is not.

    Args:
      document_N: the number of each section's document, ascending.
      source: for the error message.

    Raises:
      DataError: there are fewer than two sections.
    """
    check_enough(len(document_N), source)
    _, counts = np.unique(document_N, return_counts=True)
    exact = Fraction(share).limit_denominator(10**6)
    ends = [int(end) for end in np.cumsum(counts)]
    due = [end * exact.numerator // exact.denominator for end in ends]
    held_out_N = np.zeros(len(document_N), bool)
    for end, count, tail in zip(ends, counts, np.diff(due, prepend=0), strict=True):
        held_out_N[end - min(tail, count) : end] = True
    held_out_N[0], held_out_N[-1] = False, held_out_N[-1] or not held_out_N.any()
    return held_out_N


def hold_out_last(document_N: np.ndarray, share: float, source: str) -> np.ndarray:
    """As `hold_out_tails`, but whole documents, the last ones; a single document is cut in two."""
    check_enough(len(document_N), source)
    numbers = np.unique(document_N)
    if len(numbers) == 1:
        return hold_out_tails(document_N, share, source)
    count = min(max(1, round(share * len(numbers))), len(numbers) - 1)
    return document_N >= numbers[-count]


def check_enough(count: int, source: str) -> None:
    """Raises DataError unless there are two sections at least: one to learn from and one to be held out."""
    if count == 0:
        raise DataError(f"--data.source={source} holds no text")
    if count == 1:
        raise DataError(
            f"--data.source={source} is a single section, and some text must be held out for evaluation; "
            f"give more text or smaller sections (--data.section_bytes)"
        )


def spread(sections: Sections, max_bytes: int) -> Iterator[Section]:
    """Sections in order: all of them, or evenly spread ones that hold about `max_bytes` bytes of text together.

    What is translated counts as text.
    """
    probes = [sections[int(i)] for i in np.unique(np.linspace(0, len(sections) - 1, 64).astype(int))]
    mean = np.mean([len((section.source + section.text).encode()) for section in probes])
    stride = max(1, int(np.ceil(mean * len(sections) / max_bytes)))
    return (sections[i] for i in range(0, len(sections), stride))
