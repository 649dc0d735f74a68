"""SkyPilot: spot TPU VMs and other clouds' machines, as a managed job, which is started again where it is taken away.

https://docs.skypilot.co/en/latest/reference/yaml-spec.html and .../examples/managed-jobs.html.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.schema import Config, ConfigError
from launch.clusters.fitting import check_devices, check_tpus, slice_of_tpus
from launch.clusters.job import ROOT, Job, Request, State, ask

READS = ("nodes", "accelerators", "storage", "spot")
FILE = "task.yaml"
MOUNT = "/runs"
PORT = 8476
STATES = {
    "PENDING": "waiting", "SUBMITTED": "waiting", "STARTING": "waiting", "RUNNING": "running", "RECOVERING": "waiting",
    "CANCELLING": "running", "SUCCEEDED": "done", "CANCELLED": "saved",
}  # fmt: skip


def run_folder(request: Request, asked: str) -> str:
    """Where the run is, as its machines see it: in the mounted bucket, under its own name."""
    return f"{MOUNT}/{request.name}"


def check(job: Job, config: Config) -> None:
    """Refuses what would not run.

    Raises:
      ConfigError: the mesh does not fit on the accelerators, a bucket is missing, or SkyPilot (where it is installed)
        does not read the task.
    """
    asked = job.request
    if asked.accelerators.startswith("tpu-"):
        if asked.nodes > 1:
            raise ConfigError(f"--nodes={asked.nodes}: a slice of TPUs is one node; take a larger one.")
        check_tpus(config, slice_of_tpus(asked.accelerators.removeprefix("tpu-"), 1))
    elif match := re.fullmatch(r"[\w-]+(?::(\d+))?", asked.accelerators):
        check_devices(config, asked.nodes, int(match[1] or 1))
    else:
        raise ConfigError(f"--accelerators={asked.accelerators}: what each machine has, such as tpu-v6e-8 or H100:8.")
    if not re.fullmatch(r"(gs|s3|r2|cos|oci)://\S+", asked.storage):
        raise ConfigError(
            f"--storage={asked.storage}: the bucket that checkpoints go to, gs://BUCKET or s3://BUCKET: whatever is "
            "only on a machine is lost with it."
        )
    if importlib.util.find_spec("sky"):
        sky = importlib.import_module("sky")
        try:
            sky.Task.from_yaml_config(task(job))
        except Exception as error:  # It has classes of its own for each kind of mistake.
            raise ConfigError(f"SkyPilot does not take this task: {error}") from error


def render(job: Job) -> str:
    """The task."""
    import yaml

    return yaml.safe_dump(task(job), sort_keys=False, width=120)


def task(job: Job) -> dict[str, Any]:
    """The task as SkyPilot reads it.

    The hosts of a slice of TPUs find each other; machines with GPUs are told by three variables.
    """
    asked = job.request
    tpus = asked.accelerators.startswith("tpu-")
    run = ["source .venv/bin/activate"]
    if asked.nodes > 1:
        run += [
            f'export JAX_COORDINATOR_ADDRESS="$(echo "$SKYPILOT_NODE_IPS" | head -n 1):{PORT}"',
            'export JAX_NUM_PROCESSES="$SKYPILOT_NUM_NODES" JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"',
        ]
    run.append("exec " + shlex.join(["python", "-m", job.program, *job.arguments]))
    setup = "pip install uv && uv venv --python 3.12 && uv pip install --editable"
    return {
        "name": job.name,
        "workdir": str(ROOT),
        "num_nodes": asked.nodes,
        "resources": {
            "accelerators": asked.accelerators,
            "use_spot": asked.spot,
            # What exits with 75 is started again without being counted.
            "job_recovery": {"max_restarts_on_errors": asked.max_restarts, "recover_on_exit_codes": [75]},
        },
        "envs": {"JAX_PLATFORMS": "tpu,cpu" if tpus else "cuda,cpu"},
        "file_mounts": {MOUNT: {"source": asked.storage, "mode": "MOUNT"}},
        "setup": f"{setup} '.[{'tpu' if tpus else 'gpu'}]' --constraint constraints.txt\n",
        "run": "\n".join([*run, ""]),
    }


def submit(job: Job, file: Path) -> str:
    """Submits the task as a managed job; returns its name."""
    ask("sky", "jobs", "launch", "--yes", "--detach-run", f"--name={job.name}", str(file))
    return job.name


def state(job: Job, identity: str) -> State:
    """How the run is doing: the newest of the jobs of this name."""
    jobs = [each for each in json.loads(ask("sky", "jobs", "queue", "--output=json")) if each["job_name"] == identity]
    if not jobs:
        return State("unknown", "there is no such job (any more)")
    newest = max(jobs, key=lambda each: each["job_id"])
    what = str(newest["status"]).rpartition(".")[2]
    return State(STATES.get(what, "failed"), f"{what}, recovered {newest.get('recovery_count', 0)} times")


def follow(job: Job, identity: str) -> Iterator[str]:
    """What the job says."""
    command = ["sky", "jobs", "logs", f"--name={identity}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as logs:
        assert logs.stdout
        yield from logs.stdout


def cancel(job: Job, identity: str) -> str:
    """Cancels the job, which ends its machines."""
    ask("sky", "jobs", "cancel", "--yes", f"--name={identity}")
    return "Its machines are ended; it goes on from the newest checkpoint."
