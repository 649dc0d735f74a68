"""Kernels that go block by block, on one device and on a row shared by several: all against float64."""

from __future__ import annotations

import functools
import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

from configs import schema
from model import build, kernels
from model.masks import Sight
from model.sharding import make_mesh, parameter_shapes
from train.loss import output_loss

ring_module = importlib.import_module("model.kernels.ring")  # The package gives its name to the function.
B, T, N, K, H = 2, 32, 4, 2, 8
SEGMENTS = np.repeat([[1, 2, 2, 3, 3, 3, 4, 0], [1, 1, 1, 1, 1, 1, 1, 1]], T // 8, axis=1)
POSITIONS = np.stack([[row[:t].tolist().count(row[t]) for t in range(T)] for row in SEGMENTS])
CASES = {
    "causal": {"causal": True},
    "all": {"causal": False},
    "segments": {"causal": True, "segments": True},
    "window": {"causal": True, "window": 5, "segments": True},
    "two-way window": {"causal": False, "window": 3},
    "soft-cap": {"causal": True, "softcap": 1.5},
    "alibi": {"causal": True, "slopes": True},
    "sinks": {"causal": True, "sinks": True, "window": 4},
}
MESHES = {
    "no mesh": None,
    "sequence 1": {"data": 1, "devices": 1},
    "sequence 2": {"sequence": 2, "data": 2, "devices": 4},
    "sequence 4": {"sequence": 4, "tensor": 2, "data": 1, "devices": 8},
    "sequence 8": {"sequence": 8, "data": 1, "devices": 8},
}


def inputs(dtype="float32", length=T):
    random = np.random.default_rng(0)
    shapes = (B, length, N, H), (B, length, K, H), (B, length, K, H), (N,), (B, length, N, H)
    return [random.normal(size=shape).astype(dtype) for shape in shapes]


def sight_of(case):
    segments = jnp.asarray(SEGMENTS) if case.get("segments") else None
    positions = jnp.asarray(POSITIONS if case.get("segments") else np.broadcast_to(np.arange(T), (B, T)))
    return Sight(positions, positions, segments, segments, case["causal"])


@functools.cache
def expected(name):
    """Output and gradients from the definition, in float64."""
    case = CASES[name]
    visible = np.asarray(sight_of(case).visible(jnp.asarray(case.get("window", 0))))
    far = np.abs(np.float64(sight_of(case).distance()))
    with jax.enable_x64(True):
        query, key, value, sinks, cotangent = (jnp.asarray(x, jnp.float64) for x in inputs())

        def attend(query, key, value, sinks):
            key, value = (jnp.repeat(x, N // K, axis=2) for x in (key, value))
            scores = jnp.einsum("BTNH,BSNH->BNTS", query, key) / 3
            if "softcap" in case:
                scores = case["softcap"] * jnp.tanh(scores / case["softcap"])
            if "slopes" in case:
                scores = scores - jnp.asarray(slopes(), jnp.float64)[None, :, None, None] * far[:, None]
            exp = jnp.where(visible[:, None], jnp.exp(scores), 0)
            extra = jnp.exp(sinks)[None, :, None, None] if "sinks" in case else 0
            return jnp.einsum("BNTS,BSNH->BTNH", exp / (exp.sum(-1, keepdims=True) + extra), value)

        output, pull = jax.vjp(attend, query, key, value, sinks)
        return [np.asarray(x) for x in (output, *pull(cotangent))]


def slopes():
    return np.array([0.5, 0.25, 0.125, 0.0625], np.float32)


def run(name, kernel, mesh, dtype="float32"):
    case = CASES[name]
    *arrays, cotangent = (jnp.asarray(x, dtype) for x in inputs())
    settings = {"scale": 1 / 3, "softcap": case.get("softcap", 0.0), "window": jnp.asarray(case.get("window", 0))}
    settings |= {"slopes_N": jnp.asarray(slopes()) if "slopes" in case else None, "gather": kernel == "gather"}

    def attend(query, key, value, sinks):
        sinks = sinks if "sinks" in case else None
        return kernels.ring(query, key, value, sight_of(case), sinks_N=sinks, **settings)

    @jax.jit
    def both(*arrays):
        output, pull = jax.vjp(attend, *arrays)
        return output, *pull(cotangent)

    if mesh is None:
        return both(*arrays)
    axes = {name: size for name, size in mesh.items() if name != "devices"}
    with jax.set_mesh(make_mesh(schema.Mesh(**axes), jax.devices()[: mesh["devices"]])):
        return both(*arrays)


@pytest.mark.parametrize(
    ("kernel", "mesh"),
    [
        pytest.param(*each, marks=pytest.mark.slow if each[1] in ("sequence 1", "sequence 8") else ())
        for each in itertools.product(["ring", "gather"], MESHES)
    ],
)
@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients_are_those_of_the_definition_in_float64(name, kernel, mesh, monkeypatch):
    monkeypatch.setattr(ring_module, "BLOCK", 8)
    for ours, theirs in zip(run(name, kernel, MESHES[mesh]), expected(name), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("mesh", ["no mesh", "sequence 4"])
def test_bfloat16_is_as_near_as_its_rounding_allows(mesh):
    for ours, theirs in zip(run("segments", "ring", MESHES[mesh], "bfloat16"), expected("segments"), strict=True):
        np.testing.assert_allclose(np.float32(ours), theirs, atol=0.05)


@pytest.mark.parametrize("devices", [2, 3, 4, 8])
def test_zigzag_gives_each_device_an_early_and_a_late_part_and_is_undone(devices):
    mesh = make_mesh(schema.Mesh(data=1, sequence=devices), jax.devices()[:devices])
    x_BT = jnp.arange(4 * devices)[None]
    spec = jax.sharding.PartitionSpec(None, "sequence")

    def both_ways(x_BT):
        there = ring_module._zigzag(x_BT, devices)
        return there, ring_module._straight(there, devices)

    with jax.set_mesh(mesh):
        mapped = jax.shard_map(both_ways, in_specs=spec, out_specs=(spec, spec), check_vma=False)
        there, back = jax.jit(mapped)(x_BT)
    parts = np.arange(4 * devices).reshape(-1, 2)
    np.testing.assert_array_equal(there[0].reshape(devices, 2, 2), [[parts[j], parts[-1 - j]] for j in range(devices)])
    np.testing.assert_array_equal(back, x_BT)


@pytest.mark.parametrize("mesh", ["no mesh", "sequence 2"])
@pytest.mark.parametrize("name", ["causal", "all", "segments", "window", "two-way window", "soft-cap"])
def test_splash_interpreted_on_a_cpu_computes_what_dense_computes(name, mesh):
    case, length = CASES[name], 256
    query, key, value, _, cotangent = (jnp.asarray(x) for x in inputs(length=length))
    positions = jnp.broadcast_to(jnp.arange(length), (B, length))
    segments = jnp.asarray(np.arange(length) // 50 + np.zeros((B, 1), int)) if case.get("segments") else None
    sight = Sight(positions, positions, segments, segments, case["causal"])
    window, softcap = case.get("window", 0), case.get("softcap", 0.0)

    def splash(*arrays):
        windows = (0, 5) if window == 5 else (window,)
        return kernels.splash(*arrays, sight, scale=1 / 3, window=jnp.asarray(window), windows=windows, softcap=softcap)

    def dense(*arrays):
        return kernels.dense(*arrays, sight.visible(jnp.asarray(window)), scale=1 / 3, softcap=softcap)[0]

    def both(kernel):
        def run(*arrays):
            output, pull = jax.vjp(kernel, *arrays)
            return output, *pull(cotangent)

        return jax.jit(run)(query, key, value)

    expected = both(dense)
    if MESHES[mesh] is None:
        found = both(splash)
    else:
        with jax.set_mesh(make_mesh(schema.Mesh(data=2, sequence=2, tensor=2))):
            found = both(splash)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.slow
def test_memory_per_device_falls_as_devices_share_a_long_row():
    length = 131_072
    config = tiny(kernel="ring", remat="full", head_width=8)
    module = build(config)

    def temporary(devices: int) -> int:
        mesh = make_mesh(schema.Mesh(data=1, sequence=devices), jax.devices()[:devices])
        tokens_BT = jax.ShapeDtypeStruct((1, length), jnp.int32)

        def loss(params, tokens_BT):
            x_BTD = module.apply({"params": params}, tokens_BT, head=False)
            return output_loss(config, params, x_BTD, tokens_BT, jnp.ones_like(tokens_BT, jnp.float32)).objective

        with jax.set_mesh(mesh):
            compiled = jax.jit(jax.grad(loss)).lower(parameter_shapes(module), tokens_BT).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    one, *others = (temporary(devices) for devices in (1, 2, 4, 8))
    for devices, shared in zip((2, 4, 8), others, strict=True):
        assert shared < 1.3 * one / devices, (devices, shared, one)
