"""Processes on this machine with simulated devices: what a cluster does, without one.

A supervisor in the background starts them, and again when they ask for it or one is lost; `python -m
launch.clusters.local FOLDER` is it. To cancel is to stop the supervisor, which lets the processes save first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from configs.schema import Config
from launch.clusters.job import Job, Request, State, check_folder, environment, load, tail
from launch.processes import BY_HAND

READS = ("processes", "devices")
FILE = "commands.sh"
POLL = 0.2  # Seconds.
SAID = {0: State("done"), 75: State("saved", "it was stopped"), 2: State("failed", "bad flags")}


def run_folder(request: Request, asked: str) -> str:
    """Where the run is, as its processes see it."""
    return str(Path(asked).absolute())


def check(job: Job, config: Config) -> None:
    """Refuses what would not run.

    Raises:
      ConfigError: the mesh does not fit on the devices, or the run folder cannot be made.
    """
    from launch.clusters.fitting import check_devices

    check_devices(config, job.request.processes, job.request.devices)
    check_folder(Path(job.run))


def render(job: Job) -> str:
    """The command of each process."""
    lines = []
    for number in range(job.request.processes):
        said = [f"{name}={value}" for name, value in _variables(job, number, "PORT").items()]
        lines.append(shlex.join([*said, *_command(job)]))
    return "\n".join([*lines, ""])


def submit(job: Job, file: Path) -> str:
    """Starts the supervisor; returns its process number."""
    for old in [*job.folder.glob("*.log"), job.folder / "ended"]:
        old.unlink(missing_ok=True)
    with (job.folder / "supervisor.log").open("w") as log, (job.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Which the supervisor inherits, and holds as long as it lives.
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "launch.clusters.local", job.name], cwd=job.directory, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, start_new_session=True, pass_fds=[lock.fileno()],
            env={**os.environ, **environment()},
        )  # fmt: skip
    return str(supervisor.pid)


def state(job: Job, identity: str) -> State:
    """How the run is doing."""
    ended = job.folder / "ended"
    if ended.exists():
        status = int(ended.read_text())
        return SAID.get(status, State("failed", f"with exit status {status}"))
    if _is_held(job):
        return State("running", f"supervisor {identity}")
    return State("failed", f"its supervisor is gone; see {job.folder / 'supervisor.log'}")


def follow(job: Job, identity: str) -> Iterator[str]:
    """What process 0 and the supervisor say, until the run has ended."""
    return tail(job.folder / "0.log", lambda: state(job, identity), POLL)


def cancel(job: Job, identity: str) -> str:
    """Asks the processes to save and to end; what a person is told."""
    if state(job, identity).ended:
        return "It has ended already."
    os.kill(int(identity), signal.SIGTERM)
    return "It saves and ends."


def _is_held(job: Job) -> bool:
    """Whether a supervisor lives."""
    with (job.folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _command(job: Job) -> list[str]:
    return [sys.executable, "-m", job.program, *job.arguments]


def _variables(job: Job, number: int, port: int | str) -> dict[str, str]:
    """What tells a process which of how many it is, and gives it its devices."""
    said = (f"127.0.0.1:{port}", str(job.request.processes), str(number))
    flags = [*os.environ.get("XLA_FLAGS", "").split(), f"--xla_force_host_platform_device_count={job.request.devices}"]
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags), **dict(zip(BY_HAND.values(), said, strict=True))}


class Supervisor:
    """Starts the processes of a job until they are done, or cannot go on."""

    def __init__(self, job: Job) -> None:
        self.job, self.asked = job, False
        self.children: list[subprocess.Popen[bytes]] = []
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(number)

    def go(self) -> int:
        """Returns the exit status of the run."""
        failures = 0
        while True:
            statuses = self.attempt()
            status = together(statuses)
            if status in (0, 2) or self.asked:
                return status
            failures += status != 75
            if failures > self.job.request.max_restarts:
                self.say(f"exit statuses {statuses}; it was started again {self.job.request.max_restarts} times")
                return status
            why = "saved" if status == 75 else f"failed, {failures} of at most {self.job.request.max_restarts} times"
            self.say(f"exit statuses {statuses}: {why}; starting again")

    def say(self, what: str) -> None:
        """Adds a line to what is followed."""
        with (self.job.folder / "0.log").open("a") as log:
            log.write(f"launch.submit: {what}\n")

    def attempt(self) -> list[int]:
        """Starts all processes and waits for them: where one fails, the others end by themselves or are killed."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        for number in range(self.job.request.processes):
            environment = {**os.environ, **_variables(self.job, number, port)}
            with (self.job.folder / f"{number}.log").open("a") as log:
                self.children.append(subprocess.Popen(_command(self.job), stdout=log, stderr=log, env=environment))
        if self.asked:  # While they were being started.
            self._signal(signal.SIGTERM)
        deadline = float("inf")
        while any(child.poll() is None for child in self.children):
            if deadline == float("inf") and (self.asked or any(child.returncode for child in self.children)):
                deadline = time.monotonic() + self.job.request.grace
            if time.monotonic() > deadline:
                self._signal(signal.SIGKILL)
            time.sleep(POLL)
        statuses, self.children = [child.returncode for child in self.children], []
        return statuses


def together(statuses: list[int]) -> int:
    """The exit status of a run of several processes."""
    if 2 in statuses:
        return 2
    if bad := [status for status in statuses if status not in (0, 75)]:
        return bad[0] if bad[0] > 0 else 128 - bad[0]
    return max(statuses)


def main(name: str) -> int:
    """The supervisor of the run of this name."""
    job, _ = load(name)
    status = Supervisor(job).go()
    (job.folder / "ended").write_text(str(status))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
