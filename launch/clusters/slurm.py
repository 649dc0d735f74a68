"""Slurm: one batch script for whole machines, which starts a process on each and queues again when they have saved.

What the script guards against, each met on a real scheduler: a batch shell that dies of the signal meant for the
training makes the job FAILED rather than queued again; JAX dials the first machine by its name, and a name that does
not resolve is a silent wait; and a job that saves because it is cancelled (it is COMPLETING then) would queue again.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from configs.schema import Config, ConfigError
from launch.clusters.job import PROGRAMS, ROOT, Job, Request, State, ask, check_folder, tail

READS = ("nodes", "gpus", "partition", "account", "time")
FILE = "job.sh"
POLL = 5.0  # Seconds between two questions to the scheduler.
SCRIPT = """\
#!/bin/bash
{options}
trap '' TERM  # It is for the training, which saves; this shell has to outlive it.
trap 'cancelled=1' USR1
export PYTHONPATH={root}${{PYTHONPATH:+:$PYTHONPATH}} JAX_PLATFORMS={platforms}

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if ! getent hosts "$first" >/dev/null; then
  echo "launch.submit: the name of the first machine, $first, does not resolve here: it has to be in DNS." >&2
  exit 1
fi

failures=0
while true; do
  srun --wait={grace} {command}
  status=$?
  state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)
  if [ -n "$cancelled" ] || [ "$state" != RUNNING ] || [ $status = 0 ] || [ $status = 2 ]; then
    exit $status
  elif [ $status = 75 ]; then
    echo "launch.submit: saved; queued again" >&2
    scontrol requeue "$SLURM_JOB_ID" && exit 0
    exit $status
  fi
  failures=$((failures + 1))
  if [ $failures -gt {max_restarts} ]; then
    exit $status
  fi
  echo "launch.submit: exit status $status, failed $failures of at most {max_restarts} times; starting again" >&2
done
"""
STATES = {
    "PENDING": "waiting", "CONFIGURING": "waiting", "REQUEUED": "waiting", "REQUEUE_HOLD": "waiting",
    "SPECIAL_EXIT": "waiting", "SUSPENDED": "waiting", "RUNNING": "running", "COMPLETING": "running",
    "PREEMPTED": "running", "COMPLETED": "done", "CANCELLED": "saved",
}  # fmt: skip


def run_folder(request: Request, asked: str) -> str:
    """Where the run is, as its machines see it, which share a file system with this one."""
    return str(Path(asked).absolute())


def check(job: Job, config: Config) -> None:
    """Refuses what would not run.

    Raises:
      ConfigError: the mesh does not fit on the devices, or the run folder cannot be made.
    """
    from launch.clusters.fitting import check_devices

    check_devices(config, job.request.nodes, job.request.gpus or 1)
    check_folder(Path(job.run))


def render(job: Job) -> str:
    """The batch script."""
    asked = job.request
    options = {
        "job-name": job.name, "nodes": asked.nodes, "ntasks-per-node": 1, "gpus-per-node": asked.gpus, "mem": "0",
        "partition": asked.partition, "account": asked.account, "time": asked.time,
        "signal": f"TERM@{asked.grace}",  # To the training alone, so long before the time is over.
        "chdir": job.directory, "output": log(job), "open-mode": "append",
    }  # fmt: skip
    lines = [f"#SBATCH --{name}={shlex.quote(str(value))}" for name, value in options.items() if value]
    return SCRIPT.format(
        options="\n".join([*lines, "#SBATCH --exclusive", "#SBATCH --requeue"]), root=shlex.quote(str(ROOT)),
        platforms="cuda,cpu" if asked.gpus else "cpu", grace=asked.grace, max_restarts=asked.max_restarts,
        command=shlex.join([sys.executable, "-m", job.program, *job.arguments]),
    )  # fmt: skip


def log(job: Job) -> Path:
    """Where the job writes what it says; the jobs of an ablation have one folder."""
    return Path(job.run) / ("slurm.log" if job.program == PROGRAMS[0] else f"slurm-{job.name}.log")


def submit(job: Job, file: Path) -> str:
    """Submits the script; returns the job's number."""
    Path(job.run).mkdir(parents=True, exist_ok=True)  # Slurm does not make the folder of its log.
    return ask("sbatch", "--parsable", str(file)).partition(";")[0]


def state(job: Job, identity: str) -> State:
    """How the run is doing, by the scheduler that holds it or, later, by its accounting."""
    try:
        shown = ask("scontrol", "show", "job", "--oneliner", identity)
    except ConfigError as error:
        if "Invalid job id" not in str(error):
            raise
        return _accounted(identity)
    facts: dict[str, str] = {name: value for name, _, value in (word.partition("=") for word in shown.split())}
    what, detail = facts["JobState"], f"restarts {facts.get('Restarts', '0')}, exit {facts.get('ExitCode', '')}"
    if what == "FAILED" and "exit 75:" in detail:
        return State("saved", f"it was cancelled, {detail}")
    return State(STATES.get(what, "failed"), f"{what} {detail}")


def _accounted(identity: str) -> State:
    """The state of a job that the scheduler has forgotten."""
    try:
        what = ask("sacct", "--noheader", "--parsable2", "--allocations", "--format=State", f"--jobs={identity}")
    except ConfigError:  # There need not be any accounting.
        what = ""
    if not what:
        return State("unknown", "Slurm has forgotten it; its output tells")
    return State(STATES.get(what.split()[0], "failed"), what)


def follow(job: Job, identity: str) -> Iterator[str]:
    """What the job says, until it has ended."""
    return tail(log(job), lambda: state(job, identity), POLL)


def cancel(job: Job, identity: str) -> str:
    """Asks the training to save and to end; what a person is told."""
    what = state(job, identity).what
    if what == "waiting":
        ask("scancel", identity)
        return "It had not begun, or not begun again."
    if what != "running":
        return "It has ended already."
    ask("scancel", "--batch", "--signal=USR1", identity)  # So that the script does not queue itself again.
    ask("scancel", "--signal=TERM", identity)
    return "It saves and ends."
