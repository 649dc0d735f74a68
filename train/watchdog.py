"""Notices a run that stands still, and which of several processes holds up the others.

A run stands still where a collective waits for a process that is gone, or a disk does not answer. One process holds up
the others where its data come slowly or its machine is busy: then it is at work itself while they wait for devices.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from train import processes
from train.stop import RESTART
from train.storage import in_bucket

LOOKS = 10.0  # Seconds between two looks, at most.
OFTEN = 3  # A process that holds up the others in so many looks in a row is named: once may be a compilation.


class Watchdog:
    """Ends the process with status 75 if `beat` is not called for `seconds`, after the stacks of all threads.

    The stacks go to stderr and to stalled-PROCESS.txt in the run folder. Nothing is saved: a process that stands still
    cannot. The newest checkpoint is as good as it was.
    """

    def __init__(self, folder: Path, seconds: float, farewell: Callable[[str], None]) -> None:
        """`seconds` of 0 never ends it. `farewell` gets the sentence with which this process ends."""
        self._folder, self._seconds, self._farewell = folder, seconds, farewell
        self._step, self._waited, self._beaten = 0, 0.0, time.monotonic()
        self._before = (0, 0.0, self._beaten)  # Step, seconds waited and time of the look before.
        self._suspected: dict[int, list[int]] = {}  # The steps at which a process held up the others, in a row.
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, step: int) -> None:
        """Something has been done, after `step` steps."""
        self._step, self._beaten = step, time.monotonic()

    @contextlib.contextmanager
    def waits(self) -> Iterator[None]:
        """Within, the process waits for devices: for all of them, so for all processes."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    def close(self) -> None:
        """Ends the watch."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(min(self._seconds / 4, LOOKS) if self._seconds else LOOKS):
            self._publish()
            if processes.writes():
                self._name_stragglers()
            if self._seconds and time.monotonic() - self._beaten > self._seconds:
                self._bark()

    def _publish(self) -> None:
        """Tells the others how far this process is, and how long it is at work itself in a step."""
        step, waited, now = self._step, self._waited, time.monotonic()
        step_before, waited_before, before = self._before
        if step > step_before:
            seconds = (now - before) / (step - step_before)
            own = seconds - (waited - waited_before) / (step - step_before)
            processes.publish({"step": step, "own": own, "seconds": seconds})
            self._before = (step, waited, now)

    def _name_stragglers(self) -> None:
        told = processes.published()
        for process, one in told.items():
            others = [other["own"] for number, other in told.items() if number != process]
            usual = statistics.median(others) if others else one["own"]
            steps = self._suspected.setdefault(process, [])
            if len(steps) == OFTEN or one["step"] in steps:
                continue
            if not (one["own"] > 2 * usual and one["own"] - usual > one["seconds"] / 2):
                steps.clear()
                continue
            steps.append(one["step"])
            if len(steps) == OFTEN:
                print(
                    f"Process {process} holds up the others: of the {one['seconds']:.2f} s of a step it is at work "
                    f"itself for {one['own']:.2f} s (data, Python, a busy machine), the others for {usual:.2f} s.",
                    file=sys.stderr, flush=True,
                )  # fmt: skip

    def _bark(self) -> None:
        sentence = f"no step for {self._seconds:g} s, at step {self._step}"
        steps = {process: one["step"] for process, one in processes.published().items()}
        if behind := [str(process) for process, step in steps.items() if step < max(steps.values())]:
            sentence += f"; process {', '.join(behind)} is behind the others"
        path = self._folder / f"stalled-{jax.process_index()}.txt"
        if in_bucket(path):  # Which may be what does not answer, and takes no file that grows.
            path = Path(tempfile.gettempdir()) / path.name
        with (
            contextlib.suppress(OSError),
            path.open("w", encoding="utf-8") as file,
        ):  # The disk may be what stands still.
            print(sentence, file=file, flush=True)
            faulthandler.dump_traceback(file, all_threads=True)
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        print(f"\nWatchdog: {sentence}. Stacks: {path}. Ends with status {RESTART}.", file=sys.stderr, flush=True)
        self._farewell(sentence)
        os._exit(RESTART)
