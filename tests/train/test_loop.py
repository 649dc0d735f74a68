"""Runs in processes of their own, which are killed, stopped, and go on.

A fork server that has everything imported makes a process ready in a second.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from compiled_fast import COMPILED_FAST

from configs import schema
from configs.convert import override
from configs.presets import smoke
from configs.schema import Config, ConfigError
from model.sharding import make_mesh
from train import checksums, loop, storage
from train.checkpoint import CheckpointError, Checkpoints, finished_steps
from train.data.pipeline import train_batches
from train.data.sections import DataError
from train.data.sources import open_corpus
from train.data.tokenizer import Tokenizer
from train.loop import TrainingError, train
from train.stop import Stopped
from train.storage import RunFolderError, held

STEPS, KILLS, SECONDS = 120, 6, 120
TIMES = ("train/tokens_per_second", "train/mfu")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    folder = tmp_path_factory.mktemp("text")
    rng = random.Random(0)
    words = ["see", "attention", "query", "key", "value", "head", "größe", "層"]
    for name in "abc":
        text = "\n".join(" ".join(rng.choices(words, k=rng.randint(3, 12))) for _ in range(150))
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    changes = {
        "data.source": f"text:{folder}/*.txt", "data.length": 16, "data.held_out": 0.1, "train.batch_size": 4,
        "train.steps": STEPS, "train.log_every": 5, "train.eval_every": 15, "train.eval_batches": 2,
        "train.checkpoint_every": 5, "train.sample_every": 15, "model.width": 16, "model.num_layers": 1,
        "model.dropout": 0.1, "optimizer.ema_decay": 0.9, "data.section_bytes": 512,
    }  # fmt: skip
    return override(smoke(), changes)


def run_in_child(config: Config, folder: Path, cache: Path, stop_in_evaluation: bool) -> None:
    os.environ["XLA_FLAGS"] = COMPILED_FAST  # and one device
    folder.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr = folder.with_suffix(".log").open("a", buffering=1)
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    without_measuring()
    if stop_in_evaluation:
        evaluations_that_stop(os.getpid())
    train(config, folder, "the same command", make_sampler)


def without_measuring() -> None:
    from train import metrics

    metrics.matmul_peak = lambda dtype: 1e11  # type: ignore[assignment]


def evaluations_that_stop(process: int) -> None:
    """The second evaluation gets SIGTERM after its first batch."""
    batches, count = loop.held_out_batches, iter(range(1000))

    def interrupted(*args: Any) -> Iterator[Any]:
        number = next(count)
        for batch in batches(*args):
            yield batch
            if number == 1:
                os.kill(process, signal.SIGTERM)

    loop.held_out_batches = interrupted  # type: ignore[assignment]


def make_sampler(run: Any) -> Callable[[Any, int], dict[str, str]]:
    def sampler(params: Any, step: int) -> dict[str, str]:
        weights = np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])
        return {"prompt": run.config.train.sample_prompt, "text": f"{step}: {np.float64(weights).sum()!r}"}

    return sampler


class Children:
    """Starts runs; all share one compilation cache."""

    def __init__(self, cache: Path) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["test_loop", "tensorstore", "orbax.checkpoint", "tensorboardX"])
        self.cache = cache

    def start(self, config: Config, folder: Path, stop_in_evaluation: bool = False) -> Any:
        child = self.context.Process(target=run_in_child, args=(config, folder, self.cache, stop_in_evaluation))
        child.start()
        return child

    def finish(self, config: Config, folder: Path) -> None:
        child = self.start(config, folder)
        child.join(SECONDS)
        assert child.exitcode == 0


@pytest.fixture(scope="module")
def children(tmp_path_factory) -> Children:
    return Children(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def undisturbed(children: Children, config: Config, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    children.finish(config, folder)
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in found]


def last_line(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    except (OSError, IndexError, ValueError):
        return {"step": 0}


def arrays(folder: Path, config: Config) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint by name, whatever it is."""
    import orbax.checkpoint as ocp

    step = finished_steps(folder)[-1]
    assert step == config.train.steps
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader, warnings.catch_warnings(action="ignore"):
        tree = reader.restore((folder / "checkpoints" / str(step) / "state").absolute())
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same_run(folder: Path, other: Path, config: Config) -> None:
    ours, theirs = arrays(folder, config), arrays(other, config)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 30
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert lines(folder / "metrics.jsonl") == lines(other / "metrics.jsonl")
    assert lines(folder / "samples.jsonl") == lines(other / "samples.jsonl")


def wait_until(condition: Callable[[], Any], child: Any) -> bool:
    """Whether it came true before the child ended."""
    deadline = time.monotonic() + SECONDS
    while child.is_alive() and time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.001)
    return False


@pytest.mark.end_to_end
def test_six_kills_in_the_middle_of_steps_and_saves_change_nothing(children, config, undisturbed, tmp_path):
    folder, rng = tmp_path / "run", random.Random(time.time_ns())
    saves = 0

    def is_saving() -> bool:
        return any("tmp" in path.name for path in (folder / "checkpoints").glob("*"))

    for number in range(KILLS):
        child = children.start(config, folder)
        before = last_line(folder)["step"]
        assert wait_until(lambda before=before: last_line(folder)["step"] not in (0, before), child)
        if number % 2:
            assert wait_until(is_saving, child)
            time.sleep(rng.uniform(0, 0.05))
        else:
            time.sleep(rng.uniform(0, 0.1))
        saves += is_saving()
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    assert saves >= 2
    children.finish(config, folder)
    assert_same_run(folder, undisturbed, config)
    assert not is_saving()


@pytest.mark.slow
def test_fifty_signals_at_any_moment_of_its_life_change_nothing(children, config, undisturbed, tmp_path):
    """Start-up, compiling, steps, evaluations, samples, saves, their clean-up, the first moment and the last.

    A run that has come to its end is compared, and another one begun.
    """
    rng, sent, runs, seconds = random.Random(time.time_ns()), 0, 0, 1.0
    while sent < 50:
        folder = tmp_path / f"run{runs}"
        child = children.start(config, folder)
        began = time.monotonic()
        child.join(rng.uniform(0, seconds))
        if child.is_alive():
            sent += 1
            os.kill(child.pid, signal.SIGTERM if sent % 2 else signal.SIGKILL)
        child.join(SECONDS)
        assert child.exitcode in (0, 75, -signal.SIGTERM, -signal.SIGKILL)
        if child.exitcode == 0 and finished_steps(folder)[-1:] == [STEPS]:
            assert_same_run(folder, undisturbed, config)
            runs += 1
        elif last_line(folder)["step"] == 0:  # As long a life as it takes to get on, which depends on the machine.
            seconds = max(seconds, 1.5 * (time.monotonic() - began))
    children.finish(config, folder)
    assert_same_run(folder, undisturbed, config)


def test_sigterm_saves_and_the_same_command_goes_on(children, config, undisturbed, tmp_path):
    folder = tmp_path / "run"
    child = children.start(config, folder)
    assert wait_until(lambda: last_line(folder)["step"] >= 20, child)
    os.kill(child.pid, signal.SIGTERM)
    child.join(SECONDS)
    assert child.exitcode == 0
    stopped = finished_steps(folder)[-1]
    assert 20 <= stopped < STEPS
    assert f"Saved at step {stopped} of {STEPS}; to go on: the same command\n" in folder.with_suffix(".log").read_text()
    children.finish(config, folder)
    assert_same_run(folder, undisturbed, config)


def test_an_evaluation_that_was_stopped_is_made_up_for(children, config, undisturbed, tmp_path):
    folder = tmp_path / "run"
    child = children.start(config, folder, stop_in_evaluation=True)
    child.join(SECONDS)
    assert child.exitcode == 0
    assert finished_steps(folder)[-1] == 30
    assert [line["step"] for line in lines(folder / "metrics.jsonl") if "eval/loss" in line] == [15]
    children.finish(config, folder)
    assert_same_run(folder, undisturbed, config)


def test_a_sample_that_was_given_up_is_made_up_for(short, tmp_path, monkeypatch):
    """Also: a signal ends the process at once as long as the first step compiles, and from then on it is a request."""
    config, folder, stop, unsaved = override(short, {"train.sample_every": 2}), tmp_path / "run", loop.Stop(), []
    made = loop.make_train_step

    def make(*args: Any) -> Callable[..., Any]:
        train_step = made(*args)

        def step(*args: Any) -> Any:
            unsaved.append(stop.unsaved)  # While it is compiled.
            return train_step(*args)

        return step

    def give_up(params: Any, step: int) -> dict[str, str]:
        unsaved.append(stop.unsaved)
        stop.requested = True  # As a signal does.
        raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(loop, "make_train_step", make)
        result = train(config, folder, "command", lambda run: give_up, stop)
    assert (result.finished, result.step, finished_steps(folder)) == (False, 2, [2])
    assert unsaved == [False, True]
    assert not lines(folder / "samples.jsonl")
    assert train(config, folder, "command", make_sampler).finished
    assert [line["step"] for line in lines(folder / "samples.jsonl")] == [2, 4]


def test_a_finished_run_is_left_as_it_is(children, config, undisturbed):
    before = {name: (undisturbed / name).read_bytes() for name in ("metrics.jsonl", "samples.jsonl", "config.json")}
    steps = finished_steps(undisturbed)
    children.finish(config, undisturbed)
    assert before == {name: (undisturbed / name).read_bytes() for name in before}
    assert finished_steps(undisturbed) == steps


def test_the_run_folder_holds_what_the_report_needs(undisturbed, config):
    metrics, samples = (lines(undisturbed / name) for name in ("metrics.jsonl", "samples.jsonl"))
    assert [line["step"] for line in metrics if "train/loss" in line] == [1, *range(5, STEPS + 1, 5)]
    assert [line["step"] for line in metrics if "eval/bits_per_byte" in line] == [*range(15, STEPS + 1, 15)]
    assert [line["step"] for line in samples] == [*range(15, STEPS + 1, 15)]
    assert samples[0]["prompt"] == config.train.sample_prompt
    assert list(undisturbed.glob("events.*"))
    best = min((line for line in metrics if "eval/loss" in line), key=lambda line: line["eval/bits_per_byte"])
    assert finished_steps(undisturbed) == sorted({best["step"], STEPS - 5, STEPS})


@pytest.fixture
def short(config: Config, monkeypatch) -> Config:
    without_measuring()
    monkeypatch.setattr(loop, "make_mesh", lambda mesh: make_mesh(mesh, jax.devices()[:1]))  # compiles much faster
    return override(config, {"train.steps": 4, "train.eval_every": 0, "train.sample_every": 0, "model.dropout": 0.0})


def test_another_config_is_refused_with_the_differences(short, tmp_path):
    folder = tmp_path / "run"
    train(short, folder, "command")
    changed = override(short, {"model.width": 32, "optimizer.learning_rate": 0.5, "data.prefetch": 5})
    with pytest.raises(ConfigError) as caught:
        train(changed, folder, "command")
    assert "model.width: 32 here, 16 there" in str(caught.value)
    assert "optimizer.learning_rate: 0.5 here, 0.001 there" in str(caught.value)
    assert "prefetch" not in str(caught.value)
    assert train(override(short, {"data.prefetch": 5}), folder, "command").finished


def test_another_text_is_refused_and_what_cannot_be_read_is_left_out_counted_and_listed(short, tmp_path, capsys):
    records = [json.dumps({"text": "see attention query key value head\n" * 20})] * 30
    records[3:5] = ['{"text"', '{"title": ""}']
    text, folder = tmp_path / "text.jsonl", tmp_path / "run"
    text.write_text("\n".join(records))
    config = override(short, {"data.source": f"jsonl:{text}"})
    with pytest.raises(DataError, match=r"text.jsonl, line 4, offset \d+: not JSON"):
        train(config, folder, "command")
    config = override(config, {"data.bad_records": "skip"})
    train(config, folder, "command")
    assert "2 record(s) cannot be read and are left out" in capsys.readouterr().err
    listed = (folder / "skipped_records.txt").read_text().splitlines()
    assert ["line 4" in listed[0], "line 5" in listed[1], len(listed)] == [True, True, 2]
    counts = [line["data/skipped_records"] for line in lines(folder / "metrics.jsonl") if "train/loss" in line]
    assert counts == [2.0] * len(counts) != []
    text.write_text("\n".join(records[:-1]))
    with pytest.raises(DataError, match=r"text\.jsonl has changed since the run began"):
        train(config, folder, "command")


@pytest.fixture
def faulty(request, monkeypatch) -> list[Any]:
    """The loss of the third step is NaN (or of those in `param`), on whatever it is computed; what has been read."""
    made, seen, bad_steps = loop.make_train_step, [], getattr(request, "param", {3})

    def is_bad(inputs_BT: np.ndarray) -> np.bool_:
        seen.append(inputs_BT.tolist())
        return np.bool_(len(seen) in bad_steps)

    def make(*args: Any) -> Callable[..., Any]:
        train_step = made(*args)

        def step(state: Any, batch: Any) -> Any:
            new, metrics = train_step(state, batch)
            bad = jax.pure_callback(is_bad, jax.ShapeDtypeStruct((), np.bool_), batch["inputs"])
            loss = jax.numpy.where(bad, jax.numpy.nan, metrics["train/loss"])
            return new, {**metrics, "train/loss": loss, "train/anomaly": jax.numpy.where(bad, 1.0, 0.0)}

        return step

    monkeypatch.setattr(loop, "make_train_step", make)
    return seen


@pytest.mark.usefixtures("faulty")
def test_nan_stops_with_step_batch_and_checkpoint(short, tmp_path):
    config, folder = override(short, {"train.checkpoint_every": 1}), tmp_path / "run"
    with pytest.raises(TrainingError, match=f"Stopped at step 3: .*nan.*batch 2 of seed 0.*Return to {folder}@2"):
        train(config, folder, "command")
    assert json.loads((folder / "anomaly.json").read_text())["data_state"]["rows"]


@pytest.mark.usefixtures("faulty")
def test_nan_is_skipped(short, tmp_path):
    config, folder = override(short, {"train.anomaly": "skip", "train.log_every": 1}), tmp_path / "run"
    assert train(config, folder, "command").finished
    (line,) = (line for line in lines(folder / "metrics.jsonl") if line.get("train/anomaly"))
    assert line["step"] == 3
    assert line["train/loss"] is None


def test_nan_rolls_back_and_leaves_out_what_was_read_since_the_checkpoint(short, tmp_path, capsys, faulty):
    changes = {"train.anomaly": "rollback", "train.checkpoint_every": 2, "train.log_every": 1}
    config, folder = override(short, changes), tmp_path / "run"
    assert train(config, folder, "command").finished
    (record,) = map(json.loads, (folder / "rollbacks.jsonl").read_text().splitlines())
    assert (record["step"], record["to"], record["batch"]) == (3, 2, 2)
    assert "Rolled back from step 3 to step 2" in capsys.readouterr().err
    losses = [line["train/loss"] for line in lines(folder / "metrics.jsonl") if "train/loss" in line]
    assert len(losses) == 4
    assert all(np.isfinite(losses))
    # Batch 2 was bad, 3 under way: both are left out, and nothing is read twice.
    stream = train_batches(
        open_corpus(config.data), Tokenizer.from_json((folder / "tokenizer.json").read_text()), config
    )
    assert faulty == [next(stream)["inputs"].tolist() for _ in range(6)]


@pytest.mark.parametrize("faulty", [range(3, 100)], indirect=True)
def test_after_so_many_rollbacks_it_stops_and_says_so_also_when_it_is_started_again(short, tmp_path, faulty):
    changes = {"train.anomaly": "rollback", "train.checkpoint_every": 2, "train.rollbacks": 2}
    config, folder = override(short, changes), tmp_path / "run"
    for _ in range(2):
        with pytest.raises(
            TrainingError, match=r"Stopped at step 3: the loss is nan .*rolled back 2 times \(--train.rollbacks\)"
        ):
            train(config, folder, "command")
        records = [json.loads(line) for line in (folder / "rollbacks.jsonl").read_text().splitlines()]
        assert [(record["step"], record["to"]) for record in records] == [(3, 2)] * 2
        assert records[0]["data_state"] != records[1]["data_state"]  # Another batch each time.
    assert faulty[2:7:2] == faulty[8:13:2]  # The same ones again, once more.


def test_a_full_disk_is_one_clear_error(short, tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunFolderError, match=r"cannot be written: .*metrics.jsonl: No space left on device. Make room"):
        train(short, tmp_path, "command")


@pytest.fixture
def mounted(tmp_path):
    """Mounts file systems of their own, which takes root, and the right to."""
    places: dict[Path, None] = {}

    def mount(place: Path, *options: str) -> Path:
        place.mkdir(exist_ok=True)
        done = subprocess.run(["mount", *options, place], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
        places.update({place: None})
        return place

    if not shutil.which("mount"):
        pytest.skip("there is no mount here")
    yield mount
    for place in places:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_is_one_clear_error_and_what_was_saved_stays_good(short, tmp_path, mounted):
    disk = mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=6m", "tmpfs")
    config, folder = override(short, {"train.steps": 40, "train.checkpoint_every": 1, "train.keep": 100}), disk / "run"
    with pytest.raises(
        (CheckpointError, RunFolderError), match=rf"{folder}.*No space left on device. Make room"
    ) as caught:
        train(config, folder, "command")
    assert "\n" not in str(caught.value)
    saved = finished_steps(folder)
    assert 0 < len(saved) < 40
    assert [checksums.damage(folder / "checkpoints" / str(step)) for step in saved] == [None] * len(saved)
    # There is room again, and the same command goes on.
    mounted(disk, "-o", "remount,size=60m")
    assert train(config, folder, "command").finished


@pytest.mark.slow
def test_a_folder_that_became_read_only_is_one_clear_error(short, tmp_path, mounted):
    disk = mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=60m", "tmpfs")
    folder = disk / "run"
    train(short, folder, "command")
    saved = finished_steps(folder)
    mounted(disk, "-o", "remount,ro")
    with pytest.raises(
        RunFolderError, match=f"cannot be written: {folder}.*Read-only file system. Make it writable or choose"
    ):
        train(override(short, {"train.keep": 3}), folder, "command")
    assert finished_steps(folder) == saved
    assert checksums.damage(folder / "checkpoints" / str(saved[-1])) is None


def test_a_write_that_fails_is_tried_again_where_that_may_help(tmp_path, monkeypatch, capsys):
    tries, write_text = [], Path.write_text

    def failing(self: Path, *args: Any, **more: Any) -> int:
        tries.append(self)
        if len(tries) == 1:
            raise OSError(errno.EIO, "Input/output error")
        return write_text(self, *args, **more)

    monkeypatch.setattr(storage, "PAUSES", (0.01, 0.01))
    monkeypatch.setattr(Path, "write_text", failing)
    storage.write_atomically(tmp_path / "config.json", "{}")
    assert ((tmp_path / "config.json").read_text(), len(tries)) == ("{}", 2)
    assert capsys.readouterr().err == "Tried again in 0.01 s: [Errno 5] Input/output error\n"
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunFolderError, match="Is a directory"):
        storage.write_atomically(tmp_path / "folder", "{}")
    assert len(tries) == 3


def test_a_place_that_cannot_be_written_is_one_clear_error(short, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunFolderError, match=r"cannot be written: .*file/run: Not a directory"):
        train(short, tmp_path / "file" / "run", "command")


def test_a_save_that_fails_stops_the_run(short, tmp_path, monkeypatch):
    def save(self: Checkpoints, *_: Any) -> None:
        raise CheckpointError("no room")

    monkeypatch.setattr(Checkpoints, "save", save)
    with pytest.raises(CheckpointError, match="no room"):
        train(short, tmp_path / "run", "command")


def test_a_start_that_failed_does_not_claim_the_folder(short, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"--mesh\.data=3"):
        train(override(short, {"mesh.data": 3}), folder, "command")
    assert (folder / "config.json").exists()
    assert train(override(short, {"model.width": 32}), folder, "command").finished


@pytest.mark.slow  # tests/train/test_meshes.py: losses of a mesh, and a checkpoint that goes on with other devices.
def test_on_a_mesh_a_run_is_the_same_as_on_one_device_also_when_it_goes_on(config, tmp_path, monkeypatch):
    without_measuring()
    changes = {"train.steps": 4, "train.eval_every": 2, "train.sample_every": 0, "train.checkpoint_every": 2}
    short = override(config, {**changes, "train.batch_size": 8})
    on_mesh = override(short, {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2})

    class SoonStopped(loop.Stop):
        def __call__(self) -> bool:
            self.asked = getattr(self, "asked", 0) + 1
            return self.asked >= 3

    assert not train(on_mesh, tmp_path / "mesh", "command", stop=SoonStopped()).finished
    assert train(on_mesh, tmp_path / "mesh", "command").finished
    monkeypatch.setattr(loop, "make_mesh", lambda mesh: make_mesh(schema.Mesh(), jax.devices()[:1]))
    assert train(short, tmp_path / "one", "command").finished
    for name in ("train/loss", "eval/loss"):
        one, mesh = (
            [line[name] for line in lines(tmp_path / run / "metrics.jsonl") if name in line] for run in ("one", "mesh")
        )
        np.testing.assert_allclose(mesh, one, rtol=1e-5)


def test_a_folder_that_another_process_trains_in_is_refused(short, tmp_path):
    with held(tmp_path), pytest.raises(RunFolderError, match="Another process is training"):
        train(short, tmp_path, "command")
    assert train(short, tmp_path, "command").finished
