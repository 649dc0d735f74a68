"""A JobSet's pods as processes of this machine: a slice is killed, another evicted, and the run ends as it should."""

from __future__ import annotations

import os
import signal
import time

import pytest
import submitted
import yaml
from compiled_fast import COMPILED_FAST
from jobset import Controller

pytestmark = pytest.mark.slow
FLAGS = ("--on=gke", "--topology=v5e:2x4", "--slices=2", "--image=image", "--storage=gs://bucket", "--dry_run")


@pytest.fixture
def controller(tmp_path):
    controllers = []

    def make(*more: str) -> Controller:
        command = [*submitted.training(submitted.words(tmp_path), "run"), *more]
        text = submitted.submit(tmp_path, *FLAGS, "--max_restarts=1", command=command)
        environment = {"XLA_FLAGS": COMPILED_FAST, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        controllers.append(Controller(yaml.safe_load(text), tmp_path, environment))
        controllers[-1].start()
        return controllers[-1]

    yield make
    for controller in controllers:
        controller.stop()


# Two slices of two hosts with four chips each.
MESH = ("--mesh.data=4", "--mesh.fsdp=4", "--train.batch_size=16", "--train.steps=200")


def test_a_run_on_two_slices_of_which_one_is_killed_and_one_evicted_ends_as_one_process_does(controller, tmp_path):
    on = controller(*MESH)
    assert [(pod.slot, pod.index) for pod in on.pods] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    submitted.wait_for_step(tmp_path / "run", 20)
    for pod in on.pods[2:]:  # The machines of a slice are gone.
        os.kill(pod.process.pid, signal.SIGKILL)
    while not on.restarts:
        assert on.step() == "running", on.logs()
        time.sleep(0.1)
    assert (on.counted, on.failures[0]) == (1, "BackoffLimitExceeded")

    step = submitted.last_step(tmp_path / "run")
    submitted.wait_for_step(tmp_path / "run", step + 20)
    on.pods[1].process.send_signal(signal.SIGTERM)  # As where a node is drained; all save together.
    assert on.run(600) == "Completed", on.logs()
    # The eviction is not counted: with --max_restarts=1 that would have been too many.
    assert (on.restarts, on.counted) == (2, 1)
    assert "exit code 75 matching FailJob rule at index 1" in on.failures[1]

    alone = submitted.training(tmp_path / "text.txt", tmp_path / "alone")
    submitted.submit(tmp_path, "--on=local", "--devices=16", "--yes", command=[*alone, *MESH])
    submitted.assert_same(tmp_path / "run", tmp_path / "alone")


def test_bad_flags_end_a_jobset_at_once(controller):
    on = controller(*MESH)
    on.stop()
    args = on.jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["args"]
    args[0] = args[0].replace("--config=smoke", "--config=smok")
    on.start()
    assert on.run(120) == "Failed", on.logs()
    assert (on.restarts, on.counted) == (0, 0)
    assert "exit code 2 matching FailJob rule at index 0" in on.failures[-1]
