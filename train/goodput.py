"""Where a run's time went: in steps, or in everything else that a run has to do, over all its starts.

goodput.jsonl gets a line whenever something is written anyway (metrics, a checkpoint): the seconds since the line
before, by kind. Each moment of a process belongs to one kind, so that the seconds of all lines add up to the time that
has passed. What a kill took away is known at the next start: the steps behind its checkpoint were for nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.storage import Lines

FILE = "goodput.jsonl"
# In the order in which they are shown.
KINDS = {
    "step": "training steps that were kept",
    "data": "waiting for data",
    "evaluation": "evaluating",
    "sampling": "writing samples",
    "save": "waiting for a checkpoint to be written",
    "restore": "reading a checkpoint",
    "compile": "compiling the training step, with its first run",
    "start": "imports, data preparation, making the network",
    "lost": "done again, since a kill came before the next checkpoint",
    "down": "between a kill or stop and the next start",
}


class Ledger:
    """Accounts for the time of this process, from when it began or closed the ledger of the run before.

    The lines are appended to those of earlier starts.
    """

    _closed = 0.0  # When the last ledger of this process was.

    def __init__(self, folder: Path | None, step: int) -> None:
        """Of the run in `folder`, which goes on from the checkpoint of `step` (0: none); with None, writes nothing."""
        now = time.time()
        self._file = None
        self._mark = time.monotonic()
        self._offset = now - self._mark
        began = max(_process_began(now), Ledger._closed)
        if folder:
            self._file = Lines(folder / FILE)
            began = max(began, _last_time(folder / FILE))  # Of a process that has trained here before.
        self._kinds = ["start"]
        self._spent: defaultdict[str, float] = defaultdict(float, start=now - began)
        self._line({"from": step, "time": began})

    @contextlib.contextmanager
    def spent_on(self, kind: str) -> Iterator[None]:
        """What is done within counts as `kind`, but for what is done within another kind inside."""
        self._charge()
        self._kinds.append(kind)
        try:
            yield
        finally:
            self._charge()
            self._kinds.pop()

    def write(self, step: int) -> None:
        """Writes what has been spent since the last line, after `step` steps."""
        self._charge()
        spent = {kind: round(seconds, 4) for kind, seconds in self._spent.items()}
        self._spent.clear()
        self._line({"step": step, "time": self._mark + self._offset, "seconds": spent})

    def go_back(self, step: int) -> None:
        """The run goes on from the checkpoint of `step`, in this process: what came after it was for nothing."""
        self.write(step + 1)
        self._line({"from": step, "time": self._mark + self._offset})

    def begin_steps(self) -> None:
        """From now on, what is nothing else is a training step."""
        self._charge()
        self._kinds[0] = "step"

    def sync(self) -> None:
        """Returns when all lines are where a start after a kill finds them."""
        if self._file:
            self._file.sync()

    def close(self) -> None:
        """Closes the file; what this process does next is no longer this run's time."""
        Ledger._closed = time.time()
        if self._file:
            self._file.close()

    def _charge(self) -> None:
        now = time.monotonic()
        self._spent[self._kinds[-1]] += now - self._mark
        self._mark = now

    def _line(self, line: dict[str, Any]) -> None:
        if self._file:
            self._file.write(line)


@dataclasses.dataclass(frozen=True)
class Goodput:
    """A run's time in seconds: as a whole, and by kind (`KINDS`), which add up to it."""

    total: float
    seconds: dict[str, float]
    starts: int
    steps: int

    @property
    def share(self) -> float:
        """The share of the time that went into steps that were kept, 0 to 1."""
        return self.seconds["step"] / self.total if self.total else 0.0


def read(folder: Path) -> Goodput | None:
    """What the ledger of a run says; None if it has none."""
    lines = _lines(folder / FILE)
    if not lines:
        return None
    seconds = dict.fromkeys(KINDS, 0.0)
    since: list[tuple[int, dict[str, float]]] = []  # What may turn out to be lost: the step after, and what it took.
    before, starts, step = lines[0]["time"], 0, 0
    for line in lines:
        if "from" in line:
            starts += 1
            step = line["from"]
            for after, spent in since:
                kept = {"lost": sum(spent.values())} if after > line["from"] else spent
                for kind, value in kept.items():
                    seconds[kind] += value
            since = []
            seconds["down"] += line["time"] - before
        else:
            since.append((line["step"], line["seconds"]))
            step = line["step"]
        before = line["time"]
    for _, spent in since:
        for kind, value in spent.items():
            seconds[kind] += value
    return Goodput(before - lines[0]["time"], seconds, starts, step)


def _lines(path: Path) -> list[dict[str, Any]]:
    found = []
    for text in path.read_bytes().splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):  # A line that was torn by a kill.
            found.append(json.loads(text))
    return found


def _last_time(path: Path) -> float:
    lines = _lines(path)
    return lines[-1]["time"] if lines else 0.0


def _process_began(now: float) -> float:
    """When this process was started, seconds since 1970; where the system does not say, now."""
    if not sys.platform.startswith("linux"):
        return now
    with open("/proc/self/stat", encoding="utf-8") as stat:
        ticks = int(stat.read().rpartition(")")[2].split()[19])
    return now - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
