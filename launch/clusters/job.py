"""What is asked of a cluster: a command that trains, on how many of which machines; and the record kept of it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from configs.convert import from_dict
from configs.schema import Config, ConfigError, setting
from launch import processes

PROGRAMS = ("launch.train", "launch.ablate")
ROOT = Path(__file__).parents[2]
READS = ("name", "max_restarts", "grace")  # What every cluster reads of a request.
NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")  # Names of pods are made of it, and those are short.


@dataclass(frozen=True)
class Request:
    """What the flags of `launch.submit` say; each cluster reads some of them."""

    name: str = setting("", "What the run is called from now on; empty is the last part of its --run.")
    max_restarts: int = setting(
        10,
        "How often the run is started again after it failed or lost a machine. One that has saved and asks to be "
        "started again (exit status 75), as before a pre-emption, is not counted.",
        at_least=0,
    )
    grace: int = setting(120, "Seconds to save in, between being asked to stop and being killed.", at_least=1)
    processes: int = setting(1, "local: how many processes.", at_least=1)
    devices: int = setting(1, "local: simulated devices of each process.", at_least=1)
    nodes: int = setting(1, "slurm, skypilot: how many machines.", at_least=1)
    gpus: int = setting(0, "slurm: GPUs of each machine; 0 computes on its CPU.", at_least=0)
    partition: str = setting("", "slurm: the partition; empty is the default one.")
    account: str = setting("", "slurm: the account that pays.")
    time: str = setting("", "slurm: time limit, such as 2-00:00:00, before which the run saves and queues again.")
    topology: str = setting("v5e:2x2", "gke: the slice of TPUs, such as v5e:16x16, v5p:4x4x8 or tpu7x:4x4x4.")
    slices: int = setting(1, "gke: how many of these slices.", at_least=1)
    queue: str = setting("default", "gke: the Kueue queue.")
    namespace: str = setting("default", "gke: the namespace.")
    image: str = setting("", "gke: the container image; see launch/clusters/Dockerfile.")
    service_account: str = setting("default", "gke: the Kubernetes service account, which may write to --storage.")
    accelerators: str = setting("", "skypilot: what each machine has, such as tpu-v6e-8 or H100:8.")
    storage: str = setting(
        "", "gke, skypilot: where run folders are, gs://BUCKET or gs://BUCKET/FOLDER; gke: or pvc:CLAIM, a volume."
    )
    spot: bool = setting(False, "gke, skypilot: machines that are cheaper and may be taken away.")


@dataclass(frozen=True)
class Job:
    """A request together with the command that it is about."""

    on: str
    request: Request
    arguments: tuple[str, ...]  # Of the program, the last of which is --run as the machines see it.
    directory: str  # In which the command is run, where the machines see that: paths may be relative to it.
    program: str = PROGRAMS[0]

    @property
    def name(self) -> str:
        """How the run is called."""
        return self.request.name

    @property
    def run(self) -> str:
        """The run folder, as the machines see it."""
        return self.arguments[-1].removeprefix("--run=")

    @property
    def folder(self) -> Path:
        """Where the record of the job is kept, on the machine that it was submitted from."""
        return records() / self.name


@dataclass(frozen=True)
class State:
    """How a run is doing."""

    what: str  # waiting, running, done, saved (and not started again), failed, or unknown.
    detail: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.what not in ("waiting", "running")


def records() -> Path:
    """The folder of all records."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "seq2see" / "submitted"


def settings() -> Iterator[tuple[str, dataclasses.Field]]:
    """Each field of a request with its name."""
    for field in dataclasses.fields(Request):
        yield field.name, field


def save(job: Job, identity: str) -> None:
    """Keeps a record, under the name of the run, of what was submitted; `identity` is how the cluster calls it."""
    job.folder.mkdir(parents=True, exist_ok=True)
    record = {**dataclasses.asdict(job), "identity": identity}
    (job.folder / "job.json").write_text(json.dumps(record, indent=2), encoding="utf-8")


def load(name: str) -> tuple[Job, str]:
    """The job of a run, and how its cluster calls it.

    Raises:
      ConfigError: no run of this name was submitted from here.
    """
    try:
        record = json.loads((records() / name / "job.json").read_text("utf-8"))
        request = Request(**record["request"])
        program = record.get("program", PROGRAMS[0])  # Older records have none.
        job = Job(record["on"], request, tuple(record["arguments"]), record["directory"], program)
        return job, record["identity"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        there = sorted(path.parent.name for path in records().glob("*/job.json"))
        known = f"there are {', '.join(there)}" if there else "there is none yet"
        raise ConfigError(f"No run {name!r} was submitted from this machine: {known}, in {records()}.") from error


def split(argv: list[str]) -> tuple[list[str], list[str]]:
    """The command line before `--`, and what is after it."""
    if "--" not in argv:
        return argv, []
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]


def resolve(command: list[str]) -> tuple[Config, str]:
    """The config of a training command, and its --run.

    Raises:
      ConfigError: the command is none of PROGRAMS, or its flags are not right.
    """
    if not command or command[0] not in PROGRAMS:
        said = f"not {command[0]}" if command else "and nothing is there"
        raise ConfigError(f"After -- comes the command to run, {' or '.join(PROGRAMS)} and its flags, {said}.")
    for word in command:
        if word.startswith("-") and word.lstrip("-").split("=")[0] in processes.BY_HAND:
            raise ConfigError(f"{word}: the cluster says which process is which; leave it out.")
        if word in ("--run", "-run"):
            raise ConfigError("Write --run=FOLDER, with =.")
    config = from_dict(json.loads(_answer(command, "--print_config")))
    given = [word.partition("=")[2] for word in command if re.match("--?run=", word)]
    unsaid = f"runs/{config.name}" if command[0] == PROGRAMS[0] else "runs/ablation"
    return config, given[-1] if given else unsaid


def parts(command: list[str]) -> list[str]:
    """What to add to a command for each of its jobs: of an ablation, one for each program with runs to train.

    Raises:
      ConfigError: the flags are not right.
    """
    if command[0] == PROGRAMS[0] or any(re.match("--?program=", word) for word in command):
        return [""]
    programs = map(json.loads, _answer(command, "--dry_run", "--json").splitlines())
    return [f"--program={one['program']}" for one in programs if one["missing"]]


def _answer(command: list[str], *more: str) -> str:
    """What the program says to its flags: it knows best, and would define them beside those of this one."""
    parsed = subprocess.run(
        [sys.executable, "-m", *command, *more], capture_output=True, text=True, check=False,
        env={**os.environ, **environment(), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    if parsed.returncode:
        raise ConfigError(parsed.stderr.strip().removeprefix(f"{command[0]}: ") or f"{command[0]} does not start.")
    return parsed.stdout


def name_of(request: Request, run: str) -> Request:
    """The request with a name, that of the run folder where none was given.

    Raises:
      ConfigError: it cannot be a name.
    """
    name = request.name or Path(run).name.lower().replace("_", "-").replace(".", "-")
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"--name={name}: at most 40 lower-case letters, digits and hyphens, beginning with a letter; give one."
        )
    return dataclasses.replace(request, name=name)


def arguments(command: list[str], run: str) -> tuple[str, ...]:
    """The flags of a command, with `--run` as the machines see it at the end."""
    return (*(word for word in command[1:] if not re.match("--?run=", word)), f"--run={run}")


def environment() -> dict[str, str]:
    """What a command of ours needs to be found, wherever it is started."""
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}


def check_folder(folder: Path) -> None:
    """Refuses a run folder that cannot be made or written to, where this machine shares it with those that train.

    Raises:
      ConfigError: names what is in the way.
    """
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "cannot be written to" if there.is_dir() else "is not a folder"
        raise ConfigError(f"--run={folder}: {there} {why}; choose another one.")


def ask(*command: str) -> str:
    """What a program of the cluster answers.

    Raises:
      ConfigError: it is not installed, or refuses; the message has its own words.
    """
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except FileNotFoundError as error:
        raise ConfigError(f"{command[0]} is not installed here: submit from a machine of the cluster.") from error
    except subprocess.CalledProcessError as error:
        raise ConfigError(f"{shlex.join(command)}: {(error.stderr or error.stdout).strip()}") from error


def tail(path: Path, state: Callable[[], State], seconds: float) -> Iterator[str]:
    """What is written to a file, until the run has ended; looks again after so many seconds."""
    at, ended = 0, False
    while True:
        if path.exists():
            with path.open("rb") as file:
                file.seek(at)
                if text := file.read():
                    at += len(text)
                    yield text.decode("utf-8", "replace")
        if ended:
            return
        ended = has_ended(state)
        if not ended:
            time.sleep(seconds)


def has_ended(state: Callable[[], State]) -> bool:
    """Whether a run has ended; where its cluster does not answer just now, it has not."""
    try:
        return state().ended
    except ConfigError:
        return False
