"""Processes find each other, and each hears of the end of another; here they are threads, with real connections."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

from launch.control import BEAT, Control, ProcessError, relay

HOST = "127.0.0.1"


@pytest.fixture
def port() -> int:
    with socket.create_server((HOST, 0)) as server:
        return server.getsockname()[1]


class Member(threading.Thread):
    """One of several processes: gathers, and notes what it is told."""

    def __init__(self, process: int, count: int, port: int, seconds: float = 5.0, silence: float = 20.0) -> None:
        super().__init__(daemon=True)
        self.lost: list[str] = []
        self.answer, self.error = "", None
        self.control = Control(process, count, silence, lambda what, _: self.lost.append(what))
        self._arguments = (HOST, port, seconds, lambda: "1234")
        self.start()

    def run(self) -> None:
        try:
            self.answer = self.control.gather(*self._arguments)
        except ProcessError as error:
            self.error = str(error)


def gathered(count: int, port: int, **options: float) -> list[Member]:
    members = [Member(process, count, port, **options) for process in range(count)]
    for member in members:
        member.join()
    return members


def soon(condition: Callable[[], bool], seconds: float = 6 * BEAT) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def vanish(member: Member) -> None:
    """As if the process had been killed: it says nothing any more, and the system closes its connections."""
    member.control._ended = True
    for peer in member.control._peers.values():
        peer.connection.shutdown(socket.SHUT_RDWR)


def test_all_get_what_process_0_answers_and_leave_together(port):
    members = gathered(3, port)
    assert [member.answer for member in members] == ["1234"] * 3
    leaving = [threading.Thread(target=member.control.leave, daemon=True) for member in members]
    for thread in leaving[:2]:
        thread.start()
    time.sleep(2 * BEAT)
    assert all(thread.is_alive() for thread in leaving[:2])
    leaving[2].start()
    assert soon(lambda: not any(thread.is_alive() for thread in leaving))
    assert not any(member.lost for member in members)


@pytest.mark.parametrize("gone", [0, 2])
def test_whoever_dies_is_named_to_all_others(port, gone):
    members = gathered(3, port)
    vanish(members[gone])
    others = [member for member in members if member is not members[gone]]
    assert soon(lambda: all(member.lost for member in others))
    for member in others:
        (sentence,) = member.lost
        assert sentence.startswith(f"process {gone} of 3 (")
        assert sentence.endswith("has died")


def test_whoever_falls_silent_is_named_to_all_others(port):
    members = gathered(3, port, silence=3 * BEAT)
    members[1].control._ended = True  # Its connection stays open.
    assert soon(lambda: bool(members[0].lost and members[2].lost), 10 * BEAT)
    assert "process 1 of 3" in members[2].lost[0]
    assert "no sign of life" in members[2].lost[0]


def test_whoever_fails_tells_why(port):
    members = gathered(3, port)
    members[2].control.fail("the disk is full")
    assert soon(lambda: bool(members[0].lost and members[1].lost))
    assert members[0].lost == members[1].lost == ["process 2 of 3 failed: the disk is full"]
    assert members[2].lost == []


def test_who_is_slow_to_listen_hears_why_too(port):
    """One that is busy goes on with its signs of life; they lie unread at the other end, which ends."""
    zero = Member(0, 2, port)
    assert soon(partial(_sent, port, b""))
    with socket.create_connection((HOST, port)) as busy:
        busy.sendall(b'{"process": 1, "of": 2}\n')
        zero.join()
        ended = threading.Event()

        def end() -> None:
            zero.control.fail("the disk is full")
            zero.control._peers[1].connection.close()  # As the system does at the end of a process.
            ended.set()

        threading.Thread(target=end, daemon=True).start()
        for _ in range(6):
            time.sleep(BEAT / 2)
            busy.sendall(b"{}\n")
        told = b""
        while more := busy.recv(4096):
            told += more
            if b"lost" in told:
                break
        assert b"failed: the disk is full" in told
    assert ended.wait(3 * BEAT)


def test_the_missing_are_named_after_the_time_is_over(port):
    members = [Member(process, 4, port, seconds=1.0) for process in (0, 2)]
    for member in members:
        member.join()
    for member in members:
        assert member.error
        assert "2 of 4 processes are there; missing: 1, 3" in member.error
        assert f"--coordinator={HOST}:{port}" in member.error


def test_an_address_where_nobody_listens_or_that_does_not_exist_is_named(port):
    member = Member(1, 2, port, seconds=0.5)
    member.join()
    assert f"cannot reach process 0 at --coordinator={HOST}:{port} after 0.5 s: Connection refused" in str(member.error)
    with pytest.raises(ProcessError, match=r"--coordinator=no\.such\.name\.invalid:80 after 0\.1 s: "):
        Control(1, 2, 20, print).gather("no.such.name.invalid", 80, 0.1, str)
    with socket.create_server((HOST, 0)) as taken, pytest.raises(ProcessError, match="Address already in use"):
        Control(0, 2, 20, print).gather(HOST, taken.getsockname()[1], 0.1, str)


@pytest.mark.parametrize(
    ("process", "count", "words"), [(1, 3, "another process with --process_id=1"), (2, 4, "--num_processes=3, this")]
)
def test_two_with_one_number_or_with_other_counts_are_refused(port, process, count, words):
    members = [Member(number, 3, port, seconds=3.0) for number in (0, 1)]
    assert soon(lambda: 1 in members[0].control._peers)
    stranger = Member(process, count, port)
    stranger.join()
    assert words in str(stranger.error)
    last = Member(2, 3, port)
    last.join()
    assert last.answer == "1234"


def test_what_is_no_process_is_ignored(port):
    zero = Member(0, 2, port)
    for noise in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"process": "1", "of": 2}\n', b""):
        assert soon(partial(_sent, port, noise))
    other = Member(1, 2, port)
    other.join()
    zero.join()
    assert (zero.answer, other.answer) == ("1234", "1234")


def _sent(port: int, noise: bytes) -> bool:
    try:
        with socket.create_connection((HOST, port)) as connection:
            connection.sendall(noise)
            return True
    except OSError:
        return False


def test_a_relay_passes_everything_on_and_stays_open_when_the_other_end_is_gone():
    with socket.create_server((HOST, 0)) as server:
        here = socket.create_connection((HOST, relay(HOST, server.getsockname()[1])))
        there, _ = server.accept()
        here.sendall(b"x" * 1000)
        assert there.recv(1000, socket.MSG_WAITALL) == b"x" * 1000
        there.sendall(b"answer")
        assert here.recv(6, socket.MSG_WAITALL) == b"answer"
        there.close()
    here.settimeout(1.0)
    with pytest.raises(TimeoutError):
        here.recv(1)
