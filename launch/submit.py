"""Submit a training run or an ablation to a cluster: shown first, checked before it leaves, followed, found again.

  uv run -m launch.submit --on=local --processes=2 -- launch.train --config=smoke --run=runs/two
  uv run -m launch.submit --on=slurm --nodes=4 --gpus=8 --time=2-0 -- launch.train --config=llama3_8b --run=runs/llama3
  uv run -m launch.submit --on=gke --topology=v5p:4x4x4 --image=IMAGE --storage=gs://my-bucket -- launch.train …
  uv run -m launch.submit --on=skypilot --accelerators=tpu-v6e-8 --storage=gs://my-bucket -- launch.train …
  uv run -m launch.submit --on=slurm --gpus=1 -- launch.ablate --config=quickstart --vary=model.width=64,128
  uv run -m launch.submit --status=two        and --logs=two, --cancel=two (it saves first), --resume=two

--dry_run only shows the script or manifest; --yes does not ask. A run that is interrupted, pre-empted or loses a
machine is started again by the cluster and goes on from its newest checkpoint: docs/launching.md.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from absl import flags

from configs.check import check_value
from configs.flags import define_one
from configs.schema import ConfigError
from launch import clusters, start
from launch.clusters import job as jobs
from launch.clusters.job import Job, Request, State
from train.stop import RESTART

FLAGS = flags.FLAGS
ACTIONS = ("status", "logs", "cancel", "resume")
ALONE = ("local", "slurm")  # Where machines share a file system with this one.


def define(_: Sequence[str]) -> None:
    """The flags of this program."""
    flags.DEFINE_string("on", "local", f"Where to: {', '.join(clusters.NAMES)}.")
    flags.DEFINE_boolean("dry_run", False, "Check, print the script or manifest on stdout, and submit nothing.")
    flags.DEFINE_boolean("yes", False, "Do not ask before submitting.")
    flags.DEFINE_boolean("follow", True, "Show the run's output until it has ended; Ctrl-C leaves it running.")
    for action, what in zip(
        ACTIONS,
        ("say how it is doing", "show its output", "let it save and end it", "submit it again, to go on"),
        strict=True,
    ):
        flags.DEFINE_string(action, "", f"The name of a run that was submitted from this machine: {what}.")
    flags.DEFINE_boolean("json", False, "Print one JSON object per line on stdout.")
    for name, field in jobs.settings():
        define_one(name, field.default, field.metadata["help"])


def run(command: list[str]) -> int:
    """Submit the command, or do something with a run that was submitted."""
    asked = [action for action in ACTIONS if FLAGS[action].value]
    if asked and (len(asked) > 1 or command):
        raise ConfigError(f"--{asked[0]}={FLAGS[asked[0]].value} stands alone, without another action or a command.")
    if not asked:
        return submit(command)
    job, identity = jobs.load(str(FLAGS[asked[0]].value))
    cluster = clusters.named(job.on)
    if asked == ["resume"]:
        refuse_running(job, cluster.state(job, identity))
        return send([job], cluster)
    if asked == ["cancel"]:
        tell(job, identity, State("cancelled", cluster.cancel(job, identity)))
        return 0
    if asked == ["logs"]:
        return show(job, identity, cluster)
    tell(job, identity, cluster.state(job, identity))
    return 0


def submit(command: list[str]) -> int:
    """Checks, shows, asks, submits and follows."""
    cluster = clusters.named(FLAGS.on)
    request = request_of(cluster)
    config, asked = jobs.resolve(command)
    if command[0] != jobs.PROGRAMS[0]:
        check_alone(FLAGS.on, request, command[0])
    request = jobs.name_of(request, asked)
    found = [job_of(FLAGS.on, request, asked, command, part) for part in jobs.parts(command)]
    for job in found:
        cluster.check(job, config)
        if not FLAGS.dry_run and (job.folder / "job.json").exists():
            before, identity = jobs.load(job.name)
            refuse_running(before, clusters.named(before.on).state(before, identity))
    if FLAGS.dry_run:
        print("\n".join(cluster.render(job) for job in found), end="")
        return 0
    if not found:
        print(f"Nothing of {asked} is missing.", file=sys.stderr)
    return send(found, cluster)


def job_of(on: str, request: Request, asked: str, command: list[str], part: str) -> Job:
    """The job of a command, or of a part of it (`jobs.parts`), which has a name of its own."""
    folder = clusters.named(on).run_folder(request, asked)
    if part:
        request = jobs.name_of(dataclasses.replace(request, name=f"{request.name}-{part.partition('=')[2]}"), asked)
    arguments = jobs.arguments([*command, *filter(None, [part])], folder)
    return Job(on, request, arguments, str(Path.cwd()), command[0])


def check_alone(on: str, request: Request, program: str) -> None:
    """Refuses what cannot be done with an ablation.

    Raises:
      ConfigError: names it.
    """
    if on not in ALONE:
        raise ConfigError(
            f"--on={on}: {program} keeps SQLite files in its run folder, which this machine has to see: submit "
            f"it --on={' or '.join(ALONE)}."
        )
    for name in ("processes", "nodes"):
        if (count := getattr(request, name)) > 1:
            raise ConfigError(f"--{name}={count}: each job of {program} is one process; leave it at 1.")


def request_of(cluster: ModuleType) -> Request:
    """What the flags ask for.

    Raises:
      ConfigError: a value that cannot be, or one that this cluster would not read.
    """
    values = {}
    for name, field in jobs.settings():
        value = values[name] = FLAGS[name].value
        check_value(name, field, value)
        if value != field.default and name not in (*jobs.READS, *cluster.READS):
            raise ConfigError(f"--{name}={value} is not for --on={FLAGS.on}. It is, {field.metadata['help']}")
    return Request(**values)


def refuse_running(job: Job, state: State) -> None:
    """Two of a name would train in one folder."""
    if not state.ended:
        raise ConfigError(
            f"The run {job.name} is {state.what} on {job.on}: --cancel={job.name}, or give another --name."
        )


def send(found: Sequence[Job], cluster: ModuleType) -> int:
    """Shows, asks, submits and follows, one job after another."""
    for job in found:
        text = cluster.render(job)
        if not FLAGS.json:
            print(text)
        print(f"{job.name} on {job.on}: {shlex.join([job.program, *job.arguments])}", file=sys.stderr)
    if found and not FLAGS.yes and not agreed():
        return 1
    identities = []
    for job in found:
        job.folder.mkdir(parents=True, exist_ok=True)
        file = job.folder / cluster.FILE
        file.write_text(cluster.render(job), encoding="utf-8")
        jobs.save(job, "")
        identities.append(cluster.submit(job, file))
        jobs.save(job, identities[-1])
        tell(job, identities[-1], State("submitted", str(file)))
    pairs = zip(found, identities, strict=True)
    return max((show(*pair, cluster) for pair in pairs), default=0) if FLAGS.follow else 0


def agreed() -> bool:
    """Whether a person says yes.

    Raises:
      ConfigError: there is nobody to ask.
    """
    if not sys.stdin.isatty():
        raise ConfigError("There is no terminal to ask on: --yes submits without asking, --dry_run only shows.")
    print("Submit? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def show(job: Job, identity: str, cluster: ModuleType) -> int:
    """Follows the output; the exit status is that of the run."""
    try:
        for text in cluster.follow(job, identity):
            sys.stdout.write(text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"\n{job.name} goes on: --logs={job.name}, --status={job.name}, --cancel={job.name}", file=sys.stderr)
        return 0
    state = cluster.state(job, identity)
    tell(job, identity, state)
    return {"done": 0, "saved": RESTART}.get(state.what, 1)


def tell(job: Job, identity: str, state: State) -> None:
    """One line about a run."""
    if FLAGS.json:
        line = {"run": job.name, "on": job.on, "identity": identity, "state": state.what, "detail": state.detail}
        print(json.dumps({**line, "folder": job.run}), flush=True)
    else:
        print(f"{job.name} on {job.on} ({identity}): {state.what}{state.detail and ', '}{state.detail}", flush=True)


if __name__ == "__main__":
    own, command = jobs.split(sys.argv)
    start.program("launch.submit", __doc__ or "", functools.partial(run, command), define, own)
