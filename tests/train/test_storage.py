"""Run folders on a disk and in a bucket: what is written there, refused, killed, damaged, and gone on with."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request

import jax
import numpy as np
import pytest
from slurm_cluster import free_ports

from configs.schema import ConfigError
from train import storage
from train.checkpoint import finished_steps, restore_params
from train.storage import Lines, RunFolderError

RUN = "gs://bucket/some/runs/one"


@pytest.mark.parametrize("name", ["s3://bucket/run", "gs://", "gs://bucket", "gs://bucket/"])
def test_a_place_that_is_none_gets_one_clear_error(name):
    with pytest.raises(ConfigError, match=re.escape(name) + ": a run .*gs://BUCKET/FOLDER"):
        storage.place(name)


def test_a_bucket_needs_a_package(monkeypatch):
    monkeypatch.setattr(storage.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"gs://bucket/run needs .*: pip install 'seq2see\[gcs\]'"):
        storage.place("gs://bucket/run")


def test_a_line_that_was_torn_by_a_kill_is_ended(tmp_path):
    (tmp_path / "file").write_text('{"a": 1}\n{"b"')
    lines = Lines(tmp_path / "file")
    lines.write({"c": 3})
    assert (tmp_path / "file").read_text() == '{"a": 1}\n{"b"\n{"c": 3}\n'
    lines.close()


def test_what_helps_is_said_with_each_known_cause(tmp_path):
    for number, words in {errno.EACCES: "Give this user the right", errno.EIO: "Choose another place"}.items():
        with pytest.raises(RunFolderError, match=rf"{re.escape(os.strerror(number))}\. {words}"), \
            storage.writing(tmp_path):  # fmt: skip
            raise OSError(number, os.strerror(number))


# It leaves out what TensorStore looks for in an object that it reads: which version of the object this is.
EMULATOR = """
from gcp_storage_emulator.handlers import objects

download = objects.download
def with_generation(request, response, storage, *args, **kwargs):
    download(request, response, storage, *args, **kwargs)
    there = storage.objects.get(request.params["bucket_name"], {}).get(request.params["object_id"])
    if there:
        response["x-goog-generation"] = there["generation"]
objects.download = with_generation
from gcp_storage_emulator.__main__ import main
main()
"""


@pytest.fixture
def bucket(monkeypatch):
    """The address of the bucket `bucket` of an emulator that listens on this machine."""
    pytest.importorskip("gcsfs")
    pytest.importorskip("gcp_storage_emulator")
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
        monkeypatch.setenv(name, address)
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")  # Or TensorStore looks for a login.
    command = [sys.executable, "-c", EMULATOR, "start", "--host=127.0.0.1", f"--port={port}"]
    emulator = subprocess.Popen(
        [*command, "--in-memory", "--default-bucket=bucket"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while True:
        try:
            urllib.request.urlopen(address).close()
            break
        except OSError:
            assert emulator.poll() is None
            time.sleep(0.05)
    yield f"{address}/storage/v1/b/bucket/o"
    emulator.kill()
    emulator.wait()


# Of launch.train, but for the report; it sends itself a signal once it has taken so many steps.
PROGRAM = """
import os, sys
from configs.convert import override
from configs.presets import preset
from train.loop import Trainer, train
from train.storage import place

advance, after, number = Trainer.advance, *map(int, sys.argv[2:])
def struck(self):
    advance(self)
    if self.step == after:
        os.kill(os.getpid(), number)
Trainer.advance = struck
changes = {"steps": 24, "checkpoint_every": 4, "eval_every": 8, "log_every": 1, "sample_every": 0, "keep": 2}
config = override(preset("smoke"), {f"train.{name}": value for name, value in changes.items()})
sys.exit(0 if train(config, place(sys.argv[1]), "command").finished else 75)
"""


def start(run: str, after: int = 0, number: int = 0) -> str:
    """Train until the signal `number` comes after so many steps, or to the end; what it says."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, run, str(after), str(int(number))], capture_output=True, text=True,
        env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == {0: 0, signal.SIGTERM: 75, signal.SIGKILL: -signal.SIGKILL}[number], done.stderr
    return done.stderr


def losses(text: str) -> list[tuple[int, float]]:
    lines = map(json.loads, text.splitlines())
    return [(line["step"], line[name]) for line in lines for name in ("train/loss", "eval/loss") if name in line]


@pytest.mark.slow
@pytest.mark.end_to_end
def test_a_run_in_a_bucket_that_is_killed_computes_what_one_on_a_disk_does(bucket, tmp_path):
    start(str(tmp_path / "run"))
    start(RUN, 9, signal.SIGKILL)  # While step 8 is being saved, most likely; the one before is there.
    run = storage.place(RUN)
    assert finished_steps(run)
    assert "Saved at step 14" in start(RUN, 14, signal.SIGTERM)
    start(RUN)

    assert losses((run / "metrics.jsonl").read_text()) == losses((tmp_path / "run" / "metrics.jsonl").read_text())
    disk, there = (jax.tree.leaves(restore_params(spec).params) for spec in (tmp_path / "run", RUN))
    for one, other in zip(disk, there, strict=True):
        np.testing.assert_array_equal(one, other)
    with urllib.request.urlopen(f"{bucket}?prefix=some/runs/one/") as answer:
        names = {found["name"].removeprefix("some/runs/one/") for found in json.load(answer)["items"]}
    assert {"config.json", "data.json", "goodput.jsonl", "tokenizer.json"} <= names
    assert {name.split("/")[1] for name in names if name.startswith("checkpoints/")} >= {"20", "24"}
    assert any(name.startswith("events.out") for name in names)

    # A flipped byte: refused by what reads it, stepped back from by what goes on.
    newest = run / "checkpoints" / "24"
    data = next(path for path in (newest / "state" / "ocdbt.process_0" / "d").iterdir())
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(bytes(content))
    with pytest.raises(RuntimeError, match=rf"{newest} is damaged .*{RUN}@20"):
        restore_params(RUN)
    errors = start(RUN)
    assert f"The checkpoint of step 24 is damaged ({data.relative_to(newest)} is not what was written)" in errors
    assert f"it is now {RUN}/damaged/24.0" in errors
    for one, other in zip(disk, jax.tree.leaves(restore_params(RUN).params), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_who_came_last_has_a_folder_in_a_bucket(bucket):
    folder = storage.place(RUN)
    with storage.held(folder) as still_held:
        still_held()
        with storage.held(folder) as held_by_another:
            held_by_another()
            with pytest.raises(RunFolderError, match=rf"has begun to train in {RUN}, so this one ends"):
                still_held()


@pytest.mark.slow
def test_a_bucket_that_is_not_there_gets_one_clear_line(bucket):
    with pytest.raises(RunFolderError, match=r"gs://none/run/.lock: there is no such bucket\. Make it or choose"), \
        storage.held(storage.place("gs://none/run")):  # fmt: skip
        pass
