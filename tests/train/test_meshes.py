"""A run's losses are the same on any mesh: every axis, every kind of network, dropout included."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import jax
import numpy as np
import pytest

from configs.convert import override
from configs.derived import translates
from configs.schema import Config, Mesh
from model import build
from model.sharding import AXES, batch_sharding, check_divisible, make_mesh, parameter_shapes
from train.checkpoint import Checkpoints, restore_params
from train.data.tokenizer import make_tokenizer
from train.optimizer import make_optimizer
from train.step import TrainState, init_state, jit_train_step, make_train_step, state_shape

STEPS, ROWS, T, V = 20, 8, 16, 257
NETWORKS: dict[str, dict[str, Any]] = {
    "decoder": {"model.window": 6, "model.window_pattern": "LG"},
    "encoder_decoder": {"model.network": "encoder_decoder", "data.languages": "en-de"},
    "lstm": {"model.network": "lstm"},
    # Each token goes to all: rounding decides between two that are as good, and one such choice in 20 steps shows.
    # That a choice of two is the same on eight devices is tested for one step in tests/model/test_experts.py.
    "experts": {"model.num_experts": 4, "model.experts_per_token": 4},
}
BASE = {
    "model.num_layers": 4, "model.encoder_layers": 4, "model.width": 16, "model.num_heads": 4, "model.num_kv_heads": 4,
    "model.feed_forward_width": 16, "model.layers": "scan", "model.dropout": 0.1, "tokenizer.source": "bytes",
    "tokenizer.vocab_size": V, "data.length": T, "train.batch_size": ROWS, "optimizer.warmup_steps": 0,
    "optimizer.learning_rate": 0.01, "mesh.data": 1,
}  # fmt: skip
LARGE = [{axis: size} for axis in AXES for size in (4, 8) if size < 8 or axis in ("data", "fsdp", "sequence")]
SUBSETS = [dict.fromkeys(axes, 2) for count in (1, 2, 3) for axes in itertools.combinations(AXES, count)]
ALL = [*SUBSETS, *LARGE]


def config_of(network: str, mesh: dict[str, int]) -> Config:
    stages = mesh.get("stage", 1)
    pipeline = {"train.microbatches": stages, "train.rounds": 2 if stages == 2 else 1} if stages > 1 else {}
    shares = {f"mesh.{axis}": size for axis, size in mesh.items()}
    return override(Config(), BASE | NETWORKS[network] | pipeline | shares)


def batch(config: Config, number: int) -> dict[str, np.ndarray]:
    """Two texts in each row and some padding, with tokens that can be learned."""
    random = np.random.default_rng(number)

    def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        cut_B1, end_B1 = random.integers(4, 8, (ROWS, 1)), random.integers(T - 4, T + 1, (ROWS, 1))
        at_1T = np.arange(T)[None]
        segments_BT = np.where(at_1T < cut_B1, 1, np.where(at_1T < end_B1, 2, 0))
        positions_BT = np.where(at_1T < cut_B1, at_1T, at_1T - cut_B1)
        tokens_BT = np.cumsum(random.integers(0, 3, (ROWS, T + 1)), axis=1) % (V - 3)
        return tokens_BT.astype(np.int32), segments_BT.astype(np.int32), positions_BT.astype(np.int32)

    tokens_BT, segments_BT, positions_BT = rows()
    found = {"inputs": tokens_BT[:, :-1], "targets": tokens_BT[:, 1:], "segments": segments_BT}
    found["positions"] = positions_BT
    if translates(config):
        tokens_BT, found["source_segments"], found["source_positions"] = rows()
        found["source"] = tokens_BT[:, 1:]
    return found


class Training:
    """The one step on a mesh, with its state: a new one, or none yet."""

    def __init__(self, config: Config, begins: bool = True) -> None:
        devices = math.prod(getattr(config.mesh, axis) for axis in AXES)
        self.config, self.mesh = config, make_mesh(config.mesh, jax.devices()[:devices])
        check_divisible(config, self.mesh)
        module = build(config)
        optimizer = make_optimizer(config, parameter_shapes(module))
        self.like = state_shape(module, optimizer, config, self.mesh)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.like)
        if begins:
            self.state = init_state(module, optimizer, config, self.mesh)
        self.step = jit_train_step(make_train_step(module, optimizer, config), shardings, batch_sharding(self.mesh))

    def losses(self, numbers: range) -> list[float]:
        found = []
        with jax.set_mesh(self.mesh):
            for number in numbers:
                rows = jax.device_put(batch(self.config, number), batch_sharding(self.mesh))
                self.state, metrics = self.step(self.state, rows)
                found.append(float(metrics["train/loss"]))
        return found


@functools.cache
def alone(network: str) -> list[float]:
    losses = Training(config_of(network, {})).losses(range(STEPS))
    assert losses[-1] < losses[0] - 0.1
    return losses


def agree(network: str, mesh: dict[str, int]) -> None:
    if network == "lstm" and "stage" in mesh:
        pytest.skip("LSTMs are no pipeline; this is refused, see test_sharding.py")
    np.testing.assert_allclose(Training(config_of(network, mesh)).losses(range(STEPS)), alone(network), rtol=1e-5)


@pytest.mark.parametrize(
    ("network", "mesh"),
    [
        ("decoder", {"data": 2, "fsdp": 2, "tensor": 2}),
        ("experts", {"stage": 2, "expert": 2, "tensor": 2}),
    ],
    ids=str,
)
def test_losses_are_those_of_one_device(network, mesh):
    agree(network, mesh)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("mesh", ALL, ids=str)
def test_losses_are_those_of_one_device_on_every_mesh(network, mesh):
    agree(network, mesh)


def test_a_checkpoint_of_eight_devices_goes_on_with_one_two_and_four(tmp_path):
    whole = Training(config_of("decoder", {"data": 2, "fsdp": 2, "sequence": 2}))
    before = whole.losses(range(3))
    tokenizer = make_tokenizer(whole.config.tokenizer, None).to_json()
    checkpoints = Checkpoints(tmp_path, whole.config, tokenizer)
    checkpoints.save(whole.state, 3, {}, None)
    checkpoints.close()
    (tmp_path / "config.json").write_text("{}")
    saved, after = jax.tree.map(np.asarray, whole.state.params), whole.losses(range(3, 5))
    np.testing.assert_allclose([*before, *after], alone("decoder")[:5], rtol=1e-5)
    for mesh in ({}, {"stage": 2}, {"tensor": 2, "fsdp": 2}):
        there = Training(config_of("decoder", mesh), begins=False)
        there.state, _ = Checkpoints(tmp_path, there.config, tokenizer).restore(3, there.like)
        assert isinstance(there.state, TrainState)
        jax.tree.map(np.testing.assert_array_equal, there.state.params, saved)
        np.testing.assert_allclose(there.losses(range(3, 5)), after, rtol=1e-5)
    restored = restore_params(tmp_path, make_mesh(Mesh(), jax.devices()[:1]))
    jax.tree.map(np.testing.assert_array_equal, restored.params, saved)
