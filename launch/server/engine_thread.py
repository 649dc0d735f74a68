"""One thread owns the engine; the server's event loop hands it requests and gets tokens back.

The engine computes for many milliseconds at a time and is not safe to share. So the two sides exchange messages only:
requests and cancellations go in under a lock, events come back through the event loop, once per step.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from model.generate.engine import EngineStats, Event, Request


FAILED = "The engine has failed; the server's log says why."


class Runs(Protocol):
    """What the thread needs of `model.generate.engine.Engine`."""

    def submit(self, request: Request) -> int:
        """A ticket; raises ConfigError for what cannot be run."""
        ...

    def cancel(self, ticket: int) -> None:
        """Frees the request's slot."""
        ...

    def step(self) -> list[Event]:
        """Some more tokens of all that run."""
        ...

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        ...

    @property
    def stats(self) -> EngineStats:
        """How much runs and waits."""
        ...


class OverloadError(Exception):
    """Nothing more may wait; `retry_after`: seconds after which there may be room."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"As much waits as may wait; try again in {retry_after} s.")
        self.retry_after = retry_after


class StoppingError(Exception):
    """The server is being stopped, or its engine has failed."""


def ends(event: Event) -> bool:
    """Whether it is the last of its request."""
    return not event.tokens or bool(event.tokens[-1].finish)


class Stream:
    """The tokens of some requests as they come: `async for number, event in stream`; ends when all have ended.

    To be used as an async context: leaving it cancels what still runs. Raises TimeoutError if it takes too long.
    """

    def __init__(self, thread: EngineThread, requests: Sequence[Request], seconds: float | None) -> None:
        self.requests = requests
        self.running = set(range(len(requests)))  # Only the event loop reads and changes it.
        self._thread, self._loop = thread, asyncio.get_running_loop()
        self._deadline = None if seconds is None else self._loop.time() + seconds
        self._arrived: asyncio.Queue[tuple[int, Event] | Exception | None] = asyncio.Queue()

    async def __aenter__(self) -> Stream:
        """Hand the requests over; raises ConfigError if the engine cannot run one of them."""
        self._thread._tell(lambda: self._thread._submit(self))
        try:
            first = await self._next()
        except (asyncio.CancelledError, TimeoutError):
            self.cancel()
            raise
        if first is not None:
            assert isinstance(first, Exception)
            self.cancel()
            raise first
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> tuple[int, Event]:
        while self.running:
            arrived = await self._next()
            if isinstance(arrived, Exception):
                raise arrived
            assert arrived is not None
            number, event = arrived
            if number in self.running:
                if ends(event):
                    self.running.discard(number)
                return number, event
        raise StopAsyncIteration

    def cancel(self, number: int | None = None) -> None:
        """End one of the requests, or all of them."""
        ended = self.running if number is None else self.running & {number}
        if ended:
            self.running = self.running - ended
            self._thread._tell(lambda: self._thread._cancel(self, ended))

    async def _next(self) -> tuple[int, Event] | Exception | None:
        """What arrives next; raises TimeoutError if the requests took too long."""
        async with asyncio.timeout_at(self._deadline):
            return await self._arrived.get()

    def _post(self, arrived: tuple[int, Event] | Exception | None) -> None:
        """Put something into the queue, from the engine's thread."""
        with contextlib.suppress(RuntimeError):  # The event loop has been closed: nobody waits for it.
            self._loop.call_soon_threadsafe(self._arrived.put_nowait, arrived)


class EngineThread:
    """The engine's thread.

    Attributes:
      stats: the engine's, after its last step.
      failure: the exception that the engine died of, or None.
      stopping: whether nothing new is taken in.
    """

    def __init__(self, engine: Runs, *, room: int, on_failure: Callable[[], None] = lambda: None) -> None:
        """Starts the thread.

        Args:
          room: requests that may be running or waiting.
          on_failure: called in the thread when the engine has failed; nothing can be answered any more.
        """
        self.stats, self.failure, self.on_failure = engine.stats, None, on_failure
        self._engine, self._room = engine, room
        self._wake = threading.Condition()
        self._inbox: list[Callable[[], None]] = []
        self._taken = 0  # Of `room`.
        self.stopping = self._ended = False
        # Only the thread reads and changes these.
        self._tickets: dict[int, tuple[Stream, int, float]] = {}
        self._usual_seconds = 1.0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def open(self, requests: Sequence[Request], seconds: float | None = None) -> Stream:
        """Take in requests, all or none, which may take so many seconds.

        Raises:
          OverloadError: too many wait already.
          StoppingError: nothing new is taken in.
        """
        with self._wake:
            if self.stopping or self.failure:
                raise StoppingError("The server is being stopped.")
            if self._taken + len(requests) > self._room:
                raise OverloadError(max(1, math.ceil(self._usual_seconds)))
            self._taken += len(requests)
        return Stream(self, requests, seconds)

    @property
    def taken(self) -> int:
        """Requests that run or wait."""
        return self._taken

    def refuse(self) -> None:
        """Take in nothing new."""
        with self._wake:
            self.stopping = True

    def cut(self) -> None:
        """Break off what still runs: its streams raise StoppingError."""
        self._tell(lambda: self._break_off(StoppingError("The server was stopped before the answer was complete.")))

    def close(self) -> None:
        """End the thread, after the step that it is in."""
        with self._wake:
            self.stopping = self._ended = True
            self._wake.notify()
        self._thread.join()

    def _tell(self, command: Callable[[], None]) -> None:
        with self._wake:
            self._inbox.append(command)
            self._wake.notify()

    # What follows runs in the thread.

    def _run(self) -> None:
        try:
            while self._serve():
                pass
        except BaseException as error:  # A panic in a compiled package is no Exception, and nobody else would see it.
            traceback.print_exc()
            self.failure = error
            self._break_off(StoppingError(FAILED))
            self.on_failure()
            while self._read():  # Whoever was on the way when it happened gets the same answer.
                pass

    def _read(self) -> bool:
        """Wait for messages or work, and do what the messages say; returns False once the thread is to end."""
        with self._wake:
            self._wake.wait_for(lambda: self._inbox or self._ended or (self._engine.busy and not self.failure))
            commands, self._inbox = self._inbox, []
            if self._ended:
                return False
        for command in commands:
            command()
        return True

    def _serve(self) -> bool:
        """Read the messages and compute one step; returns False once the thread is to end."""
        if not self._read():
            return False
        events = self._engine.step() if self._engine.busy else []
        self.stats = self._engine.stats
        for event in events:
            stream, number, _ = self._tickets.get(event.ticket, (None, 0, 0.0))
            if stream is None:
                continue
            if ends(event):
                self._release(event.ticket)
            stream._post((number, event))
        return True

    def _submit(self, stream: Stream) -> None:
        submitted: list[int] = []
        try:
            if self.failure:
                raise StoppingError(FAILED)
            for number, request in enumerate(stream.requests):
                ticket = self._engine.submit(request)
                submitted.append(ticket)
                self._tickets[ticket] = (stream, number, time.monotonic())
        except Exception as error:
            for ticket in submitted:
                self._engine.cancel(ticket)
                self._release(ticket)
            with self._wake:
                self._taken -= len(stream.requests) - len(submitted)
            stream._post(error)
            return
        stream._post(None)

    def _cancel(self, stream: Stream, numbers: set[int]) -> None:
        for ticket, (of, number, _) in list(self._tickets.items()):
            if of is stream and number in numbers:
                if not self.failure:
                    self._engine.cancel(ticket)
                self._release(ticket)

    def _break_off(self, error: Exception) -> None:
        for ticket, (stream, _, _) in list(self._tickets.items()):
            if not self.failure:
                self._engine.cancel(ticket)
            self._release(ticket)
            stream._post(error)

    def _release(self, ticket: int) -> None:
        _, _, since = self._tickets.pop(ticket)
        # A moving average, by which Retry-After is told.
        self._usual_seconds += 0.1 * (time.monotonic() - since - self._usual_seconds)
        with self._wake:
            self._taken -= 1
