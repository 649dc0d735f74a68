"""Runs of several real processes on this machine, started, stopped, killed and gone on with as a user does.

A fork server that has everything imported makes a process ready in a second.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import pkgutil
import random
import signal
import socket
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from compiled_fast import COMPILED_FAST
from jax.sharding import Mesh

from configs import schema
from model.sharding import AXES, make_mesh
from train import processes
from train.checkpoint import finished_steps
from train.evaluate import put

STEPS, DEVICES, SECONDS = 30, 4, 240
SETTINGS = {
    "data.length": 16, "data.held_out": 0.1, "data.section_bytes": 64, "train.batch_size": 8, "train.steps": STEPS,
    "train.log_every": 1, "train.eval_every": 0, "train.eval_batches": 2, "train.checkpoint_every": 4,
    "train.sample_every": 0, "train.sample_tokens": 4, "model.width": 16, "model.num_layers": 1, "model.dropout": 0.1,
}  # fmt: skip


def test_a_process_puts_the_rows_that_its_devices_hold_where_they_belong():
    """Of eight devices here, as if those of a mesh were all this process's own."""
    mesh = make_mesh(schema.Mesh(data=2, stage=2, tensor=2))
    assert processes.rows_held(mesh, 12) == list(range(12))
    rows_BT = np.arange(24, dtype=np.int32).reshape(12, 2)
    array = put({"inputs": rows_BT}, mesh)["inputs"]
    np.testing.assert_array_equal(array, rows_BT)
    assert {shard.data.shape for shard in array.addressable_shards} == {(3, 2)}
    alone = Mesh(np.array(jax.devices()[:1]).reshape((1,) * len(AXES)), AXES)
    np.testing.assert_array_equal(put({"inputs": rows_BT}, alone)["inputs"], rows_BT)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("text"), random.Random(0)
    words = ["see", "attention", "query", "key", "value", "head", "größe", "層"]
    lines = [" ".join(rng.choices(words, k=rng.randint(3, 12))) for _ in range(900)]
    (folder / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


# What runs at each kind of moment in the life of a process.
MOMENTS = {
    "start": "train.loop.open_run",
    "data preparation": "train.data.sources.open_corpus",
    "warm-up": "train.loop.jit_train_step",
    "step": "train.loop.Trainer.settle",
    "evaluation": "train.evaluate.put",
    "sampling": "train.writing.write",
    "save": "train.checksums.write",
    "clean-up": "orbax.checkpoint._src.path.deleter.StandardCheckpointDeleter.delete_steps",
    "last second": "train.loop.Trainer.close",
}
OF_THE_FIRST = ("save", "clean-up")  # What process 0 does for all.


def strike(moment: str, number: int) -> None:
    """This process will get the signal when it comes to the moment for the first time."""
    place, name = MOMENTS[moment].rsplit(".", 1)
    owner, left = pkgutil.resolve_name(place), [number]
    does = getattr(owner, name)

    def struck(*args: Any, **more: Any) -> Any:
        if left:
            os.kill(os.getpid(), left.pop())
            time.sleep(0.5)  # Whoever listens for it hears it now.
        return does(*args, **more)

    setattr(owner, name, struck)


def member(
    arguments: list[str], devices: int, log: Path, cache: Path, step_seconds: float, struck: tuple[str, int] | None
) -> None:
    """One process: `launch.train` with these arguments, which leaves out the report and notes the sections it reads."""
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices} {COMPILED_FAST}"
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=0"  # Else the program would start itself again.
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1), os.dup2(output, 2)
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    from launch import report
    from launch import train as program
    from train import loop, metrics, watchdog
    from train.data.pipeline import TokenizedSections

    metrics.matmul_peak = lambda dtype: 1e11  # type: ignore[assignment]
    report.write_report = lambda *_: "none"  # type: ignore[assignment]
    tokenize, advance = TokenizedSections._tokenize, loop.Trainer.advance

    def noted(self: TokenizedSections, index: int) -> np.ndarray:
        with log.with_suffix(".read").open("a") as file:
            file.write(f"{len(self)} {index}\n")
        return tokenize(self, index)

    def slowly(self: loop.Trainer) -> None:
        time.sleep(step_seconds)
        advance(self)

    TokenizedSections._tokenize, loop.Trainer.advance = noted, slowly
    watchdog.LOOKS = 0.3
    if struck:
        strike(*struck)
    sys.argv = ["launch.train", *arguments]
    program.main()


class Run:
    """Processes that train together in `folder`."""

    def __init__(
        self,
        folder: Path,
        text: Path,
        cache: Path,
        count: int,
        step_seconds: float | tuple[float, ...] = 0.0,  # What each is at work itself in a step, at least.
        devices: int = DEVICES,
        strikes: dict[int, tuple[str, int]] | None = None,  # Who gets which signal at which moment.
        **more,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["test_processes", "tensorstore", "orbax.checkpoint", "tensorboardX", "grain"])
        settings = {**SETTINGS, "data.source": f"text:{text}/*.txt", "run": folder, **more}
        arguments = ["--config=smoke", "--lost_timeout=20", *(f"--{name}={value}" for name, value in settings.items())]
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        together = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}"] if count > 1 else []
        seconds = step_seconds if isinstance(step_seconds, tuple) else (step_seconds,) * count
        self.folder, self.members, self.logs = folder, [], []
        for number in range(count):
            log = folder.parent / f"{folder.name}-{time.time_ns()}-{number}.log"
            mine = [*arguments, *together, *([f"--process_id={number}"] if together else [])]
            struck = (strikes or {}).get(number)
            child = context.Process(target=member, args=(mine, devices // count, log, cache, seconds[number], struck))
            child.start()
            self.members.append(child)
            self.logs.append(log)

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + SECONDS
        while last_step(self.folder) < step:
            assert all(child.is_alive() for child in self.members), self.told()
            assert time.monotonic() < deadline, self.told()
            time.sleep(0.02)

    def statuses(self, seconds: float = SECONDS) -> list[int]:
        deadline = time.monotonic() + seconds
        for child in self.members:
            child.join(max(0.1, deadline - time.monotonic()))
        statuses = [child.exitcode for child in self.members]
        for child in self.members:
            child.kill()
        return statuses

    def told(self) -> str:
        return "\n".join(f"{log.name}:\n{log.read_text() if log.exists() else ''}" for log in self.logs)

    def sections_read(self) -> list[set[tuple[int, int]]]:
        """(length of the split, section) for each process."""
        lines = [log.with_suffix(".read").read_text().splitlines() for log in self.logs]
        return [{tuple(map(int, line.split())) for line in of_process} for of_process in lines]


def last_step(folder: Path) -> int:
    try:
        return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    except (OSError, IndexError, ValueError):
        return 0


def arrays(folder: Path) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader, warnings.catch_warnings(action="ignore"):
        path = (folder / "checkpoints" / str(STEPS) / "state").absolute()
        # The devices that it was written on are not here.
        here = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(path).item_metadata.tree
        )
        tree = reader.restore(path, restore_args=here)
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same(folder: Path, other: Path) -> None:
    ours, theirs = arrays(folder), arrays(other)
    assert ours.keys() == theirs.keys()
    assert any("params" in name for name in ours)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6, err_msg=name)
    losses = [
        [(line["step"], line[name]) for line in map(json.loads, (path / "metrics.jsonl").open()) for name in line
         if name.endswith("/loss")]
        for path in (folder, other)
    ]  # fmt: skip
    assert len(losses[0]) == STEPS + 1
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def alone(tmp_path_factory, text, cache) -> Run:
    """One process with all devices, from the beginning to the end."""
    run = Run(tmp_path_factory.mktemp("alone") / "run", text, cache, 1)
    assert run.statuses() == [0], run.told()
    return run


def data_places(folder: Path, step: int) -> dict[str, Any]:
    return json.loads(next((folder / "checkpoints" / str(step) / "data").iterdir()).read_text())["rows"]


@pytest.mark.end_to_end
def test_two_processes_of_which_one_is_killed_then_four_that_are_stopped_then_one_end_as_one(
    alone, text, cache, tmp_path
):
    """The number of processes changes in the middle of the run, twice; nothing else does."""
    folder = tmp_path / "run"
    two = Run(folder, text, cache, 2, step_seconds=(0.0, 0.5))
    two.wait_for_step(7)
    while "holds up the others" not in two.told() and all(child.is_alive() for child in two.members):
        time.sleep(0.1)
    killed = time.monotonic()
    two.members[1].kill()
    assert two.statuses() == [1, -signal.SIGKILL], two.told()
    assert time.monotonic() - killed < 60
    assert f"process 1 of 2 ({socket.gethostname()}, pid {two.members[1].pid}) has died" in two.told()
    assert "Traceback" not in two.told()
    named = [line for line in two.told().splitlines() if "holds up the others" in line]
    assert [line.partition(" holds")[0] for line in named] == ["Process 1"], two.told()
    # Each reads the sections of its own rows, and no other.
    first, second = two.sections_read()
    assert len(first) > 10
    assert not first & second
    assert first | second <= alone.sections_read()[0]

    four = Run(folder, text, cache, 4, step_seconds=0.1)
    four.wait_for_step(finished_steps(folder)[-1] + 4)
    os.kill(four.members[2].pid, signal.SIGTERM)
    assert four.statuses() == [75] * 4, four.told()
    (saved,) = [line for line in four.told().splitlines() if line.startswith("Saved at step")]
    step = finished_steps(folder)[-1]
    assert saved.startswith(f"Saved at step {step} of {STEPS}; to go on: ")
    assert step < STEPS
    assert len(data_places(folder, step)) == 8  # Of all rows, whoever read them.

    assert Run(folder, text, cache, 1).statuses() == [0]
    assert_same(folder, alone.folder)
    assert data_places(folder, STEPS) == data_places(alone.folder, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "mesh"), [(2, {}), (4, {"mesh.data": 2, "mesh.fsdp": 2}), (4, {"mesh.data": 2, "mesh.tensor": 2}),
                        (4, {"mesh.data": 2, "mesh.sequence": 2}), (4, {"mesh.data": 1, "mesh.fsdp": 4})],
)  # fmt: skip
def test_several_processes_end_with_the_parameters_of_one(alone, text, cache, tmp_path, count, mesh):
    """Evaluated and sampled on the way; where devices share rows across processes, these read the same."""
    run = Run(tmp_path / "run", text, cache, count, **mesh, **{"train.sample_every": 10})
    assert run.statuses(400) == [0] * count, run.told()
    assert_same(run.folder, alone.folder)
    samples = [json.loads(line) for line in (run.folder / "samples.jsonl").open()]
    assert [sample["step"] for sample in samples] == [10, 20, 30]


@pytest.mark.slow
def test_several_processes_start_from_a_checkpoint_as_one_does(alone, text, cache, tmp_path):
    """Its network is asked for before there is a mesh, its parameters are spread over the devices of all."""
    begins = {"init_from": alone.folder, "train.seed": 1, "mesh.data": 1, "mesh.fsdp": 2, "mesh.tensor": 2}
    one, two = (Run(tmp_path / f"run{count}", text, cache, count, **begins) for count in (1, 2))
    assert one.statuses(400) == [0], one.told()
    assert two.statuses(400) == [0, 0], two.told()
    assert_same(two.folder, one.folder)


@pytest.mark.slow
def test_when_the_coordinator_dies_the_others_name_it(text, cache, tmp_path):
    run = Run(tmp_path / "run", text, cache, 3, step_seconds=0.1, devices=3, **{"train.batch_size": 6})
    run.wait_for_step(5)
    run.members[0].kill()
    assert run.statuses() == [-signal.SIGKILL, 1, 1], run.told()
    assert run.told().count("process 0 of 3 (127.0.0.1) has died") == 2


@pytest.mark.slow
def test_a_process_that_fails_ends_the_others_with_its_reason(text, cache, tmp_path):
    """Another writes in the same folder: only process 0 finds out."""
    holder = Run(tmp_path / "run", text, cache, 1, step_seconds=3)  # For longer than the others take to start.
    holder.wait_for_step(1)
    run = Run(tmp_path / "run", text, cache, 2)
    assert run.statuses() == [1, 1], run.told()
    assert "Process 1 ends: process 0 of 2 failed: Another process is training" in run.told()
    holder.members[0].kill()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [1, 2])
def test_a_signal_at_each_kind_of_moment_changes_nothing(count, text, cache, tmp_path):
    """One of the processes gets it, in turn. The same command goes on, eighteen times, and ends with the same bits."""
    settings = {"train.keep": 1, "train.eval_every": 6, "train.sample_every": 6}
    undisturbed, folder = Run(tmp_path / "undisturbed", text, cache, count, **settings), tmp_path / "run"
    assert undisturbed.statuses() == [0] * count, undisturbed.told()
    for turn, (moment, number) in enumerate(itertools.product(MOMENTS, (signal.SIGKILL, signal.SIGTERM))):
        victim = 0 if moment in OF_THE_FIRST else turn // 2 % count
        run = Run(folder, text, cache, count, strikes={victim: (moment, number)}, **settings)
        statuses = run.statuses()
        assert statuses[victim] == (75 if number == signal.SIGTERM else -number), (moment, number, run.told())
        assert set(statuses) <= {statuses[victim], 0, 1, 75}, (moment, number, run.told())
        assert "Traceback" not in run.told(), (moment, number, run.told())
    last = Run(folder, text, cache, count, **settings)
    assert last.statuses() == [0] * count, last.told()
    ours, theirs = arrays(folder), arrays(undisturbed.folder)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    samples, losses = (
        [[{name: line[name] for name in line if name in ("step", "text") or name.endswith("loss")}
          for line in map(json.loads, (path / f"{kind}.jsonl").open())] for path in (folder, undisturbed.folder)]
        for kind in ("samples", "metrics")
    )  # fmt: skip
    assert samples[0] == samples[1]
    assert [line["step"] for line in samples[0]] == [6, 12, 18, 24, 30]
    assert losses[0] == losses[1]
