"""Asking a run to stop, from its first moment to its last. Imports nothing heavy: it has to be there before JAX is.

Python answers a signal only between two of its own instructions, so not while XLA compiles for minutes. The system
writes the signal to a socket all the same, and a thread reads it there.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

RESTART = 75  # The exit status that asks to be started again: EX_TEMPFAIL of sysexits.h.
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):  # noqa: N818
    """Raised where something that takes long is given up since the run was asked to stop."""


class Stop:
    """Turns the first SIGTERM or Ctrl-C into a request that the run polls; a second Ctrl-C ends the process.

    As long as there is nothing to save (`unsaved` is false), the process ends at once with status 75 instead, whatever
    it is doing, after `farewell(sentence)`.
    """

    def __init__(self, command: str = "the same command") -> None:
        self.requested = False
        self.unsaved = False
        self.farewell: Callable[[str], None] = lambda sentence: None
        self._command = command
        self._before: dict[int, Any] = {}
        self._wakeup: tuple[socket.socket, socket.socket] | None = None

    def __call__(self) -> bool:
        """Whether the run was asked to stop."""
        return self.requested

    def install(self) -> None:
        """Catches the signals from now on; does nothing outside of the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._wakeup = reading, writing = socket.socketpair()
        writing.setblocking(False)
        signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        # The thread takes over that they are blocked: else, after `hold`, it would be the one that gets them, and an
        # `exec` would end it with what it got.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=self._listen, args=(reading,), name="stop", daemon=True).start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def uninstall(self) -> None:
        """Gives the signals back to whoever had them."""
        if self._wakeup is None:
            return
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        self._wakeup[1].close()  # Which ends the thread.
        self._wakeup = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # What asks politely asks more than once.

    def _listen(self, reading: socket.socket) -> None:
        with reading:
            while received := reading.recv(64):
                if any(number in SIGNALS for number in received):
                    self.requested = True
                    if not self.unsaved:
                        self._end()

    def _end(self) -> None:
        sentence = f"stopped with nothing to save; to go on: {self._command}"
        self.farewell(sentence)
        print(f"\n{sentence[0].upper()}{sentence[1:]}", file=sys.stderr, flush=True)
        os._exit(RESTART)


def hold() -> None:
    """Where signals are caught, keeps them waiting until `install`: across an `exec`, which forgets who does."""
    if callable(signal.getsignal(signal.SIGTERM)):
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
