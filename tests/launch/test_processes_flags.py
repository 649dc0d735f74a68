"""Which process of how many: by flags, by the cluster, or alone."""

from __future__ import annotations

import pytest
from absl import flags

from configs.schema import ConfigError
from launch import processes
from launch.processes import Place

SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[03-04]", "SLURM_NTASKS": "2", "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}  # fmt: skip


@pytest.fixture
def place(monkeypatch):
    """find_place() of a command line."""
    mine = flags.FlagValues()
    monkeypatch.setattr(processes, "FLAGS", mine)
    monkeypatch.setattr(flags, "FLAGS", mine)
    for name in ("DEFINE_enum", "DEFINE_string", "DEFINE_integer", "DEFINE_float"):
        define = getattr(flags, name)
        monkeypatch.setattr(flags, name, lambda *a, define=define: define(*a, flag_values=mine))
    processes.define()

    def find(*arguments: str) -> Place | None:
        mine.unparse_flags()
        mine(["program", *arguments])
        return processes.find_place()

    return find


def test_without_flags_and_cluster_a_process_is_alone(place):
    assert place() is None
    assert place("--distributed=off") is None


def test_three_flags_say_it_by_hand(place):
    given = ("--coordinator=10.0.0.1:8476", "--num_processes=4", "--process_id=0")
    assert place(*given) == Place("10.0.0.1", 8476, 4, 0)
    assert place("--coordinator=here:1", "--num_processes=1", "--process_id=0") is None


SAID = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:8476", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}


def test_three_environment_variables_say_it_before_any_cluster_does(place, monkeypatch):
    for name, value in {**SLURM, **SAID}.items():
        monkeypatch.setenv(name, value)
    assert place() == place("--distributed=on") == Place("10.0.0.1", 8476, 4, 3)
    assert place("--distributed=off") is None
    assert place("--coordinator=here:1", "--num_processes=2", "--process_id=1") == Place("here", 1, 2, 1)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "3")
    with pytest.raises(ConfigError, match="JAX_PROCESS_ID=3 is none of the JAX_NUM_PROCESSES=3: 0 to 2"):
        place()
    monkeypatch.delenv("JAX_NUM_PROCESSES")
    with pytest.raises(ConfigError, match=r"JAX_COORDINATOR_ADDRESS=10.0.0.1:8476 needs JAX_NUM_PROCESSES as well"):
        place()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--process_id=1"], r"--process_id=1 needs --coordinator and --num_processes as well"),
        (["--coordinator=a:1", "--process_id=1"], r"--coordinator=a:1 needs --num_processes as well"),
        (["--coordinator=a", "--num_processes=2", "--process_id=1"], r"--coordinator=a is not HOST:PORT"),
        (["--coordinator=a:1", "--num_processes=2", "--process_id=2"], r"--process_id=2 .*=2: 0 to 1"),
        (["--coordinator=a:1", "--num_processes=-2", "--process_id=1"], r"--num_processes=-2"),
        (["--distributed=off", "--num_processes=2"], r"--distributed=off contradicts --num_processes=2"),
        (["--distributed=on"], r"no cluster .* --coordinator=HOST:PORT"),
    ],
)
def test_flags_that_are_missing_or_contradict_each_other_are_named(place, arguments, words):
    with pytest.raises(ConfigError, match=words):
        place(*arguments)


def test_slurm_says_it(place, monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert place() == place("--distributed=on") == Place("node03", 61447, 2, 1)
    assert place("--distributed=off") is None
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "2")
    assert place() == Place("node03", 61447, 2, 1, devices=[0])
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert place() is None
