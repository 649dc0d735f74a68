"""Runs on a real scheduler, with two nodes on this machine: pre-empted, robbed of a node, cancelled."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import submitted
from slurm_cluster import Cluster, why_not

from launch.clusters import job as jobs
from launch.clusters import slurm

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=f"Slurm {why_not()}")]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        yield cluster
    cluster.close()


class Submitted:
    """A run on both nodes."""

    def __init__(self, cluster: Cluster, home: Path, text: Path, name: str) -> None:
        self.cluster, self.home, self.name, self.run = cluster, home, name, home / name
        command = submitted.training(text, self.run)
        self.ask("--on=slurm", "--nodes=2", "--partition=low", "--grace=60", "--yes", "--nofollow", command=command)
        self.find()

    def ask(self, *flags: str, **more) -> str:
        return submitted.submit(self.home, *flags, **more)

    def find(self) -> None:
        """Notes the job, and how Slurm calls it."""
        self.identity = json.loads(self.ask(f"--status={self.name}", "--json"))["identity"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_STATE_HOME", str(self.home / "state"))
            self.job = jobs.load(self.name)[0]

    def wait_for(self, what: str, restarts: int, seconds: float = 300) -> None:
        """Asks as --status does, without starting a program each time."""
        deadline = time.monotonic() + seconds
        while (
            state := slurm.state(self.job, self.identity)
        ).what != what or f"restarts {restarts}," not in state.detail:
            assert time.monotonic() < deadline, (state, self.log(), self.cluster.logs())
            if state.what == "waiting" and restarts:  # Slurm lets two minutes pass before it starts a job again.
                self.cluster.call("scontrol", "update", f"JobId={self.identity}", "StartTime=now")
            time.sleep(0.5)

    def log(self) -> str:
        return (self.run / "slurm.log").read_text()[-4000:]

    def process_on(self, node: str) -> int:
        """The number of the training's process on a node."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command, environment = ((folder / file).read_bytes() for file in ("cmdline", "environ"))
            except OSError:
                continue
            if str(self.run).encode() in command and f"SLURMD_NODENAME={node}".encode() in environment:
                return int(folder.name)
        raise AssertionError((node, self.log()))


def test_a_run_that_is_preempted_and_then_loses_a_node_ends_as_one_process_does(cluster, tmp_path):
    text = submitted.words(tmp_path)
    run = Submitted(cluster, tmp_path, text, "two")
    submitted.wait_for_step(run.run, 20)
    cluster.call("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    run.wait_for("running", restarts=1)
    assert "launch.submit: saved; queued again" in run.log()
    saved = submitted.last_step(run.run)
    assert 20 <= saved < submitted.STEPS

    submitted.wait_for_step(run.run, saved + 20)
    training = run.process_on("n2")
    step_daemon = int(Path(f"/proc/{training}/stat").read_text().rpartition(")")[2].split()[1])
    cluster.kill_node("n2")
    os.kill(step_daemon, signal.SIGKILL)
    os.kill(training, signal.SIGKILL)
    killed = submitted.last_step(run.run)
    assert killed < submitted.STEPS
    cluster.wait_until_down("n2")
    cluster.start_node("n2")
    run.wait_for("running", restarts=2)
    assert run.ask("--logs=two")
    run.wait_for("done", restarts=2)

    submitted.submit(
        tmp_path, "--on=local", "--devices=2", "--yes", command=submitted.training(text, tmp_path / "alone")
    )
    submitted.assert_same(run.run, tmp_path / "alone")


def test_a_run_that_is_cancelled_saves_and_is_not_started_again_until_it_is_resumed(cluster, tmp_path):
    run = Submitted(cluster, tmp_path, submitted.words(tmp_path), "cancelled")
    submitted.wait_for_step(run.run, 10)
    run.ask("--cancel=cancelled")
    run.wait_for("saved", restarts=0)
    saved = submitted.last_step(run.run)
    assert saved < submitted.STEPS
    assert f"Saved at step {saved}" in run.log()
    assert "queued again" not in run.log()
    run.ask("--resume=cancelled", "--yes", "--nofollow")
    submitted.wait_for_step(run.run, saved + 10)
    run.find()
    cluster.call("scancel", run.identity)  # As a person may do it.
    run.wait_for("saved", restarts=0)
    assert submitted.last_step(run.run) < submitted.STEPS
