"""What the processes of a run tell each other about their lives: who is there, who has failed, who is gone.

Each holds a connection to process 0, on the coordinator's port. Whoever dies is missed at once, since the system closes
its connections, and whoever falls silent (a frozen machine, a network that is cut) after a while; then every other
process says which one it was and ends, wherever its main thread is waiting. JAX has a service with this aim as well,
but it aborts the process with a stack trace, does not tell which process was lost if that was the coordinator, and
takes 100 seconds.

Messages are lines of JSON. As JAX's own service, this is for networks whose machines trust each other.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

BEAT = 1.0  # Seconds between two signs of life.
MAX_LINE = 65_536
FAREWELL = 10 * BEAT  # Seconds that one that ends gives the others to hear why.


class ProcessError(RuntimeError):
    """Processes that did not find each other; the message names who is missing and the way out."""


@dataclass
class Peer:
    """The other end of a connection: read in whole lines, with a count of the beats for which it has been silent."""

    connection: socket.socket
    process: int = -1  # Until it has said who it is.
    name: str = ""
    silent: int = 0
    leaving: bool = False
    _begun: bytes = field(default=b"")

    def receive(self) -> list[dict[str, Any]]:
        """The messages that have come. Raises OSError at the end of the connection, ValueError if that is no peer."""
        received = self.connection.recv(MAX_LINE)
        if not received:
            raise ConnectionResetError("the connection was closed")
        *lines, self._begun = (self._begun + received).split(b"\n")
        if len(self._begun) > MAX_LINE:
            raise ValueError("not a line of text")
        messages = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("not a message")
        self.silent = 0
        return messages

    def send(self, **message: Any) -> None:
        """Sends a message; that a peer is gone is found out by reading."""
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def await_end(self, deadline: float) -> None:
        """Returns when the other end has hung up, at the latest at `deadline` of the monotonic clock.

        A connection that is closed while signs of life lie there unread takes back what was said and not heard yet.
        """
        with contextlib.suppress(OSError):
            while (left := deadline - time.monotonic()) > 0:
                self.connection.settimeout(left)
                if not self.connection.recv(MAX_LINE):
                    return


class Control:
    """This process's part of the watch; `lost(sentence, status)` is called, in a thread, when another is gone."""

    def __init__(self, process: int, count: int, silence: float, lost: Callable[[str, int], None]) -> None:
        self.process, self.count = process, count
        self._beats, self._lost = max(2, round(silence / BEAT)), lost
        self._peers: dict[int, Peer] = {}
        self._changed = threading.Condition()
        self._ended = False

    def gather(self, host: str, port: int, seconds: float, service: Callable[[], str]) -> str:
        """Waits until all processes are connected to process 0, at most so long; begins to watch.

        Args:
          service: called at process 0 when all are there; what it returns is what all get.

        Raises:
          ProcessError: some are missing, there is another process with the same number, or no process 0.
        """
        if self.process:
            answer = self._enter(host, port, seconds)
        else:
            self._admit(host, port, seconds)
            answer = service()
            for peer in self._peers.values():
                peer.send(all_there=answer)
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        return answer

    def leave(self) -> None:
        """Returns when all processes have called it, and ends the watch."""
        if self.process:
            self._peers[0].send(leaving=True)
        with self._changed:
            self._changed.wait_for(lambda: all(peer.leaving for peer in self._peers.values()))
            self._ended = True
        if not self.process:
            for peer in self._peers.values():
                peer.send(leaving=True)

    def fail(self, why: str, status: int = 1) -> None:
        """Tells all others that this process ends, why, and with which status; they have a moment to hear it."""
        with self._changed:
            self._ended = True
        self._tell(self.process, f"failed: {why}" if status == 1 else why, status)

    def _tell(self, process: int, what: str, status: int = 1) -> None:
        for peer in self._peers.values():
            peer.send(lost=process, what=what[: MAX_LINE // 8], status=status)
            with contextlib.suppress(OSError):
                peer.connection.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + FAREWELL
        for peer in self._peers.values():
            if peer.process != process:
                peer.await_end(deadline)

    def _admit(self, host: str, port: int, seconds: float) -> None:
        """Process 0: waits for all others."""
        try:
            listener = _server(host, port)
        except OSError as error:
            raise ProcessError(
                f"Process 0 cannot listen on --coordinator={host}:{port}: {error.strerror}. Choose another port, or "
                "end what is left of an earlier run."
            ) from error
        deadline = time.monotonic() + seconds
        with listener, selectors.DefaultSelector() as waiting:
            waiting.register(listener, selectors.EVENT_READ)
            while len(self._peers) < self.count - 1:
                if (left := deadline - time.monotonic()) <= 0:
                    self._give_up(f"{host}:{port}", seconds)
                for key, _ in waiting.select(left):
                    if key.fileobj is listener:
                        stranger = Peer(listener.accept()[0])
                        waiting.register(stranger.connection, selectors.EVENT_READ, stranger)
                    elif self._met(key.data):
                        waiting.unregister(key.fileobj)

    def _give_up(self, where: str, seconds: float) -> NoReturn:
        missing = [str(number) for number in range(1, self.count) if number not in self._peers]
        why = (
            f"after {seconds:g} s, {len(self._peers) + 1} of {self.count} processes are there; missing: "
            f"{', '.join(missing)}. Start all with the same --coordinator={where} and --num_processes={self.count}, "
            "each with its own --process_id; --start_timeout gives them longer."
        )
        self._tell(0, f"gave up: {why}")
        raise ProcessError(f"Process 0 gave up: {why}")

    def _met(self, stranger: Peer) -> bool:
        """Whether it has said enough to be let in or sent away."""
        try:
            messages = stranger.receive()
        except (OSError, ValueError):
            return True
        for message in messages[:1]:
            self._greet(stranger, message)
        return bool(messages)

    def _greet(self, peer: Peer, message: dict[str, Any]) -> None:
        number, count = message.get("process"), message.get("of")
        if count != self.count:
            peer.send(refused=f"it was started with --num_processes={self.count}, this one with {count}")
        elif not isinstance(number, int) or not 0 < number < self.count or number in self._peers:
            peer.send(refused=f"there is another process with --process_id={number}; each needs its own")
        else:
            peer.process, peer.name = number, str(message.get("name", ""))[:100]
            self._peers[number] = peer

    def _enter(self, host: str, port: int, seconds: float) -> str:
        """Every other process: connects to process 0 and waits until all are there."""
        deadline, last = time.monotonic() + seconds, "no answer"
        while True:
            try:
                hub = Peer(socket.create_connection((host, port), timeout=max(1.0, deadline - time.monotonic())), 0)
                break
            except OSError as error:
                last = error.strerror or str(error)
            if time.monotonic() > deadline:
                raise ProcessError(
                    f"Process {self.process} of {self.count} cannot reach process 0 at --coordinator={host}:{port} "
                    f"after {seconds:g} s: {last}. Start process 0 with the same --coordinator, an address of its own "
                    "machine that the others can reach; --start_timeout waits longer."
                )
            time.sleep(0.2)
        hub.name, self._peers[0] = host, hub
        hub.send(process=self.process, of=self.count, name=f"{socket.gethostname()}, pid {os.getpid()}")
        hub.connection.settimeout(seconds + 10)  # Process 0 gives up after that time and says who is missing.
        try:
            while True:
                for message in hub.receive():
                    if "refused" in message:
                        raise ProcessError(f"Process 0 at {host}:{port} refuses this process: {message['refused']}.")
                    if "all_there" in message:
                        hub.connection.settimeout(None)
                        return str(message["all_there"])
                    if "lost" in message:
                        raise ProcessError(f"Process {message['lost']} of {self.count} {message.get('what')}")
        except ProcessError:
            hub.connection.close()
            raise
        except (OSError, ValueError) as error:
            raise ProcessError(
                f"Process {self.process} of {self.count} lost process 0 at {host}:{port} while it waited for others: "
                f"{error}."
            ) from error

    def _watch(self) -> None:
        """Until the end: sends signs of life, and listens for those of the others."""
        with selectors.DefaultSelector() as listening:
            for peer in self._peers.values():
                listening.register(peer.connection, selectors.EVENT_READ, peer)
            while not self._ended:
                until = time.monotonic() + BEAT
                for peer in self._peers.values():
                    peer.send()
                self._listen(listening, until)
                for peer in self._peers.values():
                    # Beats are counted, not seconds: where the whole machine stood still, all are silent equally long.
                    peer.silent += 1
                    if peer.silent > self._beats and not peer.leaving:
                        self._miss(peer, f"has given no sign of life for {peer.silent * BEAT:.0f} s")

    def _listen(self, listening: selectors.BaseSelector, until: float) -> None:
        """Hears what is said up to a time, at least what has been said already."""
        late = False
        while not (late or self._ended):
            left = until - time.monotonic()
            late = left <= 0
            for key, _ in listening.select(max(left, 0)):
                if not self._hear(key.data):
                    listening.unregister(key.fileobj)

    def _hear(self, peer: Peer) -> bool:
        """Takes in what a peer says; whether there is more to come."""
        try:
            messages = peer.receive()
        except (OSError, ValueError):
            if not peer.leaving:
                self._miss(peer, "has died")
            return False
        for message in messages:
            if "lost" in message:
                self._end(message["lost"], str(message.get("what")), int(message.get("status", 1)))
            if "leaving" in message:
                with self._changed:
                    peer.leaving = True
                    self._changed.notify_all()
        return True

    def _miss(self, peer: Peer, what: str) -> None:
        self._end(peer.process, f"({peer.name}) {what}")

    def _end(self, process: int, what: str, status: int = 1) -> None:
        with self._changed:
            if self._ended:
                return
            self._ended = True
        if not self.process:
            self._tell(process, what, status)
        for peer in self._peers.values():
            peer.connection.close()
        self._lost(f"process {process} of {self.count} {what}", status)


def _server(host: str, port: int) -> socket.socket:
    """Within this machine if `host` says so, else on all its addresses: its own name may mean another one to others."""
    if host == "localhost" or host.startswith("127."):
        return socket.create_server((host, port))
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def relay(host: str, port: int) -> int:
    """A port of this machine that leads to `host:port`, and stays open when that is gone.

    JAX aborts the process in the moment in which the connection to its service is closed; by way of this it does not,
    and the watch has the time to say what happened.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    kept = []  # Else Python would close what nobody reads any more.

    def pump(source: socket.socket, to: socket.socket, ends: bool) -> None:
        with contextlib.suppress(OSError):
            while received := source.recv(65_536):
                to.sendall(received)
        if ends:
            with contextlib.suppress(OSError):
                to.shutdown(socket.SHUT_WR)

    def serve() -> None:
        while True:
            here, _ = listener.accept()
            kept.append(here)
            try:
                there = socket.create_connection((host, port))
            except OSError:
                continue
            for arguments in ((here, there, True), (there, here, False)):
                threading.Thread(target=pump, args=arguments, name="relay", daemon=True).start()

    threading.Thread(target=serve, name="relay", daemon=True).start()
    return listener.getsockname()[1]
