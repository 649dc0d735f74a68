from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.convert import override
from configs.schema import Config, Mesh, Tokenizer
from model import build
from model.sharding import make_mesh, parameter_shapes
from train import checksums
from train.checkpoint import CheckpointError, Checkpoints, find, finished_steps, restore_params
from train.data.tokenizer import make_tokenizer
from train.optimizer import evaluation_params, make_optimizer
from train.step import TrainState, init_state, state_shape

TINY = override(
    Config(),
    {
        "model.num_layers": 1, "model.width": 16, "model.num_heads": 2, "model.num_kv_heads": 2,
        "tokenizer.source": "bytes", "tokenizer.vocab_size": 257, "optimizer.ema_decay": 0.9, "mesh.fsdp": 2,
        "train.keep": 2,
    },
)  # fmt: skip
# Evaluations of steps 1 to 5: the best is neither the first nor among the newest, and one is missing.
BITS_PER_BYTE = {1: 3.0, 2: 1.5, 3: 2.0, 4: 1.8, 5: None}


def like(config: Config, mesh: jax.sharding.Mesh) -> TrainState:
    module = build(config)
    return state_shape(module, make_optimizer(config, parameter_shapes(module)), config, mesh)


def numbered(config: Config, mesh: jax.sharding.Mesh, step: int) -> TrainState:
    """A state whose every leaf is random, and another one at each step."""
    shape = like(config, mesh)
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda x: jax.device_put((100 * rng.normal(size=x.shape)).astype(x.dtype), x.sharding), shape)


def same(a, b) -> bool:
    return jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), a, b))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A run with five saves by a mesh of 4 x 2 devices, each overwritten while it was being written."""
    folder, mesh = tmp_path_factory.mktemp("run"), make_mesh(TINY.mesh)
    tokenizer = make_tokenizer(Tokenizer(source="bytes"), None)
    checkpoints = Checkpoints(folder, TINY, tokenizer.to_json())
    overwrite = jax.jit(lambda state: jax.tree.map(lambda x: x - x, state), donate_argnums=0)
    for step, bits_per_byte in BITS_PER_BYTE.items():
        state = numbered(TINY, mesh, step)
        checkpoints.save(state, step, {"rows": {"0": [step, 7]}}, bits_per_byte)
        overwrite(state)
    checkpoints.close()
    (folder / "config.json").write_text("{}")
    return folder


def test_the_newest_and_the_best_stay(run_dir):
    assert finished_steps(run_dir) == [2, 4, 5]
    assert find(run_dir) == (run_dir, 5)
    assert find(f"{run_dir}@2") == (run_dir, 2)


@pytest.mark.parametrize("devices", [8, 1])
def test_every_bit_comes_back_on_as_many_devices_as_there_are(run_dir, devices):
    mesh = make_mesh(Mesh(data=1, fsdp=devices), jax.devices()[:devices])
    checkpoints = Checkpoints(run_dir, TINY, "{}")
    expected = like(TINY, mesh)
    for step in (2, 5):
        state, data_state = checkpoints.restore(step, expected)
        assert same(state, numbered(TINY, make_mesh(TINY.mesh), step))
        assert jax.tree.structure(state) == jax.tree.structure(expected)
        assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, expected)
        assert data_state == {"rows": {"0": [step, 7]}}
    checkpoints.close()


def test_parameters_alone_are_those_that_evaluation_uses(run_dir):
    restored = restore_params(f"{run_dir}@4")
    assert (restored.step, restored.config) == (4, TINY)
    assert same(restored.params, numbered(TINY, make_mesh(TINY.mesh), 4).ema)
    assert restored.tokenizer.decode(restored.tokenizer.encode("schön 🙂")) == "schön 🙂"


@pytest.mark.parametrize("name", ["schedule_free", "muon"])
def test_parameters_alone_of_other_optimizers(tmp_path, name):
    config = override(TINY, {"optimizer.name": name, "optimizer.ema_decay": 0.0})
    mesh = make_mesh(config.mesh)
    module = build(config)
    state = init_state(module, make_optimizer(config, parameter_shapes(module)), config, mesh)
    if name == "schedule_free":  # the average must differ from what was trained
        state = dataclasses.replace(state, params=jax.tree.map(lambda x: x + 1, state.params))
    checkpoints = Checkpoints(tmp_path, config, make_tokenizer(Tokenizer(source="bytes"), None).to_json())
    checkpoints.save(state, 1, {}, None)
    checkpoints.close()
    params = restore_params(tmp_path).params
    expected = evaluation_params(config, state)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-5), params, expected))
    assert same(params, state.params) == (name == "muon")


def test_a_wrong_place_is_one_clear_error(run_dir, tmp_path):
    for spec, words in {
        tmp_path / "nothing": "There is no run folder .*nothing",
        tmp_path: "is not a run folder: it has no checkpoints",
        f"{run_dir}@3": "has no checkpoint of step 3; it has 2, 4, 5",
    }.items():
        with pytest.raises(CheckpointError, match=words) as caught:
            restore_params(spec)
        assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has no finished checkpoint yet"):
        restore_params(tmp_path)


def test_a_half_written_checkpoint_does_not_count(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    shutil.copytree(folder / "5", folder / "6.orbax-checkpoint-tmp")
    assert find(tmp_path / "run")[1] == 5
    checkpoints = Checkpoints(tmp_path / "run", TINY, "{}")
    assert checkpoints.newest() == 5
    checkpoints.close()


def harm(folder: Path, damage: str) -> None:
    """What can happen to the largest file of a checkpoint."""
    path = max((path for path in folder.rglob("d/*")), key=lambda path: path.stat().st_size)
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        written = bytearray(path.read_bytes())
        written[len(written) // 2] ^= 1
        path.write_bytes(written)


DAMAGES = {"missing": "is missing", "truncated": "has .* bytes, not", "flipped bit": "is not what was written"}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_one_clear_error(run_dir, tmp_path, damage):
    shutil.copytree(run_dir, tmp_path / "run")
    harm(tmp_path / "run" / "checkpoints" / "5", damage)
    others = r"\(the run also has .*@2, .*@4\)"
    with pytest.raises(CheckpointError, match=f"5 is damaged or of another format {others}: .*{DAMAGES[damage]}"):
        restore_params(tmp_path / "run")


def test_a_run_goes_on_from_the_newest_good_checkpoint_and_keeps_the_damaged(run_dir, tmp_path, capfd):
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    harm(folder / "checkpoints" / "5", "flipped bit")
    checkpoints = Checkpoints(folder, TINY, "{}")
    assert checkpoints.newest_good() == checkpoints.newest() == 4
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("The checkpoint of step 5 is damaged (state/")
    assert line.endswith(f"is not what was written); it is now {folder / 'damaged' / '5.0'}.")
    assert (folder / "damaged" / "5.0" / "state").is_dir()
    # It can be written again, and nothing that is damaged is taken for a checkpoint.
    checkpoints.save(numbered(TINY, make_mesh(TINY.mesh), 5), 5, {"rows": {}}, None)
    checkpoints.wait()
    assert checkpoints.newest_good() == 5
    checkpoints.close()
    assert checksums.damage(folder / "checkpoints" / "5") is None


def test_where_all_checkpoints_are_damaged_nothing_is_begun_anew(run_dir, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    steps = finished_steps(folder)
    for step in steps:
        harm(folder / "checkpoints" / str(step), "truncated")
    checkpoints = Checkpoints(folder, TINY, "{}")
    with pytest.raises(CheckpointError, match=r"All 3 checkpoints in .* are damaged \(the newest: state/"):
        checkpoints.newest_good()
    checkpoints.close()
    assert finished_steps(folder) == steps


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "checkpoints").write_text("a file is in the way")
    with pytest.raises(CheckpointError, match="cannot hold checkpoints"):
        Checkpoints(tmp_path, TINY, "{}")


def test_a_failed_save_is_an_error_that_names_the_folder(tmp_path):
    checkpoints = Checkpoints(tmp_path, TINY, "{}")
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").write_text("a file is in the way")
    state = numbered(TINY, make_mesh(TINY.mesh), 0)

    def save() -> None:  # which of the two notices is up to the threads
        checkpoints.save(state, 1, {}, None)
        checkpoints.wait()

    with pytest.raises(CheckpointError, match=r"could not be written to .*checkpoints"):
        save()


def test_orbax_is_not_heard(run_dir, capfd):
    restore_params(run_dir)
    checkpoints = Checkpoints(run_dir, TINY, "{}")
    checkpoints.close()
    assert capfd.readouterr() == ("", "")
