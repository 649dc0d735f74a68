from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.convert import override
from configs.schema import Config
from model import build
from model.sharding import batch_sharding, make_mesh, parameter_shapes
from train.optimizer import evaluation_params, make_optimizer, schedule
from train.step import SPIKE_STEPS, TrainState, init_state, jit_train_step, make_train_step, state_shape

V, T, ROWS = 64, 8, 8
TINY = override(
    Config(),
    {
        "model.num_layers": 1, "model.width": 16, "model.num_heads": 2, "model.num_kv_heads": 2,
        "model.feed_forward_width": 16, "tokenizer.vocab_size": V, "data.length": T, "train.batch_size": ROWS,
        "optimizer.warmup_steps": 0, "optimizer.learning_rate": 0.01,
    },
)  # fmt: skip
BYTE_LENGTHS_V = np.arange(V, dtype=np.int32)
NOT_A_NUMBER, SPIKE = 1, 2  # tokens that Bigram answers with NaN, and with absurd certainty


@dataclasses.dataclass(frozen=True)
class Bigram:
    """The smallest network: an output layer that reads one-hot vectors, and so is a table of logits."""

    config = override(
        Config(), {"model.width": V, "model.num_heads": 1, "model.tied_embeddings": False, "tokenizer.vocab_size": V}
    )

    def init(self, key: jax.Array, tokens_BT: jax.Array, source: None) -> Any:
        return {"params": {"output": {"kernel": 0.1 * jax.random.normal(key, (V, V))}}}

    def apply(self, variables: Any, tokens_BT: jax.Array, mutable: Any = (), **_: Any) -> Any:
        x_BTD = jax.nn.one_hot(tokens_BT, V)
        x_BTD *= jnp.where(jnp.any(tokens_BT == SPIKE), 1e4, 1.0)
        x_BTD += jnp.where(jnp.any(tokens_BT == NOT_A_NUMBER), jnp.nan, 0.0)
        return (x_BTD, {}) if mutable else x_BTD


def batch(number: int = 0) -> dict[str, np.ndarray]:
    """Tokens that can be learned, in rows with unequal shares of padding."""
    rng = np.random.default_rng(number)
    tokens = 3 + (np.cumsum(rng.integers(0, 3, (ROWS, T + 1)), axis=1) % (V - 3))
    places = np.broadcast_to(np.arange(T), (ROWS, T))
    segments = (places < T - np.arange(ROWS)[:, None] * (T - 1) // ROWS).astype(np.int32)
    inputs, targets = (x.astype(np.int32) for x in (tokens[:, :-1], tokens[:, 1:]))
    return {"inputs": inputs, "targets": targets, "segments": segments, "positions": places.astype(np.int32)}


@functools.cache
def losses(devices: int, steps: int = 3, **settings: Any) -> tuple[float, ...]:
    config = override(TINY, {name.replace("__", "."): value for name, value in settings.items()})
    module, mesh = build(config), make_mesh(config.mesh, jax.devices()[:devices])
    optimizer = make_optimizer(config, parameter_shapes(module))
    state = init_state(module, optimizer, config, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state_shape(module, optimizer, config, mesh))
    step = jit_train_step(make_train_step(module, optimizer, config), shardings, batch_sharding(mesh))
    found = []
    with jax.set_mesh(mesh):
        for number in range(steps):
            state, metrics = step(state, jax.device_put(batch(number), batch_sharding(mesh)))
            found.append(float(metrics["train/loss"]))
    return tuple(found)


@pytest.mark.parametrize(
    "mesh",
    [
        {"mesh__data": 8},
        {"mesh__data": 1, "mesh__fsdp": 8},
        {"mesh__data": 4, "mesh__tensor": 2},
        {"mesh__data": 2, "mesh__sequence": 4},
        {"mesh__data": 2, "mesh__sequence": 2, "mesh__tensor": 2},
    ],
    ids=str,
)
def test_eight_devices_compute_what_one_does(mesh):
    np.testing.assert_allclose(losses(8, **mesh), losses(1), rtol=1e-5)
    assert losses(1)[-1] < losses(1)[0]


def test_microbatches_compute_what_the_whole_batch_does():
    np.testing.assert_allclose(losses(1, train__microbatches=4), losses(1), rtol=1e-5)


def test_dropout_depends_on_neither_microbatches_nor_devices():
    alone = losses(1, model__dropout=0.3)
    np.testing.assert_allclose(losses(2, model__dropout=0.3, train__microbatches=2), alone, rtol=1e-5)
    assert not np.allclose(alone, losses(1), rtol=1e-3)


@pytest.mark.slow
def test_a_bfloat16_optimizer_state_hardly_changes_the_losses():
    exact, rounded = (np.array(losses(1, 50, optimizer__state_dtype=dtype)) for dtype in ("float32", "bfloat16"))
    assert exact[-1] < 0.7 * exact[0]
    np.testing.assert_allclose(rounded, exact, rtol=0.01)
    assert np.any(rounded != exact)


def bigram(**settings: Any) -> tuple[Config, TrainState, Callable[..., Any]]:
    config = override(TINY, {name.replace("__", "."): value for name, value in settings.items()})
    module, mesh = Bigram(), make_mesh(config.mesh, jax.devices()[:1])
    optimizer = make_optimizer(config, parameter_shapes(module))
    step = jax.jit(make_train_step(module, optimizer, config, BYTE_LENGTHS_V))
    return config, init_state(module, optimizer, config, mesh), step


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_metrics_are_those_of_the_definition():
    config, state, step = bigram(train__label_smoothing=0.1, train__z_loss=0.01, optimizer__warmup_steps=10)
    b = batch()
    _, metrics = step(state, b)
    logits = np.float64(state.params["output"]["kernel"])[b["inputs"]]
    nll = -np.take_along_axis(log_softmax(logits), b["targets"][..., None], -1)[..., 0]
    counts = b["segments"] != 0
    log_z = np.log(np.exp(logits).sum(-1))
    text_bytes = (BYTE_LENGTHS_V[b["targets"]] * counts).sum()
    assert metrics["train/loss"] == pytest.approx(nll[counts].mean(), rel=1e-5)
    assert metrics["train/bits_per_byte"] == pytest.approx(nll[counts].sum() / np.log(2) / text_bytes, rel=1e-5)
    assert metrics["train/z_loss"] == pytest.approx(0.01 * (log_z[counts] ** 2).mean(), rel=1e-5)
    assert float(metrics["train/tokens"]) == counts.sum()
    assert metrics["train/learning_rate"] == pytest.approx(config.optimizer.learning_rate / 10)


def test_gradient_norm_and_learning_rate_are_those_that_were_applied():
    settings = {"optimizer__name": "sgd", "optimizer__beta1": 0.0, "optimizer__weight_decay": 0.0}
    _, state, step = bigram(**settings, optimizer__clip_norm=0.0, optimizer__warmup_steps=5)
    for number in range(3):
        before, (state, metrics) = state, step(state, batch(number))
        moved = np.linalg.norm(state.params["output"]["kernel"] - before.params["output"]["kernel"])
        assert moved == pytest.approx(float(metrics["train/grad_norm"] * metrics["train/learning_rate"]), rel=1e-3)


def same(a: Any, b: Any) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.mark.parametrize("token", [NOT_A_NUMBER, SPIKE])
@pytest.mark.parametrize("optimizer", ["adamw", "schedule_free"])
def test_an_anomaly_leaves_everything_but_the_clocks_as_it_was(token, optimizer):
    averages = {} if optimizer == "schedule_free" else {"optimizer__ema_decay": 0.9}
    config, state, step = bigram(optimizer__name=optimizer, optimizer__warmup_steps=200, **averages)
    for number in range(SPIKE_STEPS):
        state, metrics = step(state, batch(number))
        assert metrics["train/anomaly"] == 0
    bad = batch(0)
    bad["inputs"] = np.where(bad["positions"] == 0, token, bad["inputs"])
    after, metrics = step(state, bad)
    assert metrics["train/anomaly"] == 1
    assert same((after.params, after.ema), (state.params, state.ema))
    old, new = (jax.tree.leaves(x.opt_state) for x in (state, after))
    for a, b in zip(old, new, strict=True):
        assert b == a + 1 if np.issubdtype(a.dtype, np.integer) else np.array_equal(a, b)
    assert after.step == state.step + 1
    assert np.isfinite(after.loss_average)

    later, metrics = step(after, batch(1))
    assert metrics["train/anomaly"] == 0
    assert not same(later.params, after.params)
    assert metrics["train/learning_rate"] == schedule(config)(SPIKE_STEPS + 1)


def test_a_spike_is_no_anomaly_where_only_nan_is_looked_for():
    _, state, step = bigram(train__spike_factor=0.0)
    state = dataclasses.replace(state, step=jnp.int32(100), loss_average=jnp.float32(4.0))
    bad = batch(0)
    bad["inputs"] = np.full_like(bad["inputs"], SPIKE)
    _, metrics = step(state, bad)
    assert metrics["train/loss"] > 100
    assert metrics["train/anomaly"] == 0


def test_the_moving_average_is_what_evaluation_uses():
    config, state, step = bigram(optimizer__ema_decay=0.5)
    mean = np.float64(state.params["output"]["kernel"])
    for number in range(8):
        state, _ = step(state, batch(number))
        decay = min(0.5, (1 + number) / (10 + number))
        mean = decay * mean + (1 - decay) * np.float64(state.params["output"]["kernel"])
    np.testing.assert_allclose(evaluation_params(config, state)["output"]["kernel"], mean, atol=1e-6)
    assert not np.allclose(state.params["output"]["kernel"], mean, atol=1e-4)


def test_what_the_optimizer_keeps_for_a_parameter_lies_where_the_parameter_does():
    config = override(TINY, {"mesh.data": 1, "mesh.fsdp": 4, "mesh.tensor": 2, "optimizer.ema_decay": 0.9})
    module, mesh = build(config), make_mesh(config.mesh)
    shape = state_shape(module, make_optimizer(config, parameter_shapes(module)), config, mesh)
    specs = [jax.tree.map(lambda leaf: leaf.sharding.spec, tree)
             for tree in (shape.params, shape.ema, shape.opt_state[1].mu, shape.opt_state[1].nu)]  # fmt: skip
    assert specs[0] == specs[1] == specs[2] == specs[3]
    assert "fsdp" in str(specs[0]["layers"]["attention"]["query"]["kernel"])
    assert shape.step.sharding.spec == jax.sharding.PartitionSpec()


def test_with_bfloat16_only_matrix_products_and_what_flows_between_them_are_rounded():
    config = override(TINY, {"model.dtype": "bfloat16", "model.activation": "relu", "train.z_loss": 1e-4})
    module, mesh = build(config), make_mesh(config.mesh, jax.devices()[:1])
    optimizer = make_optimizer(config, parameter_shapes(module))
    state = state_shape(module, optimizer, config, mesh)
    step, shape = jax.make_jaxpr(make_train_step(module, optimizer, config), return_shape=True)(state, batch())
    dtypes = lambda name: set(re.findall(rf":(bf16|f32)\[[^]]*\] = {name}\b", str(step)))  # noqa: E731
    # Softmax and its logarithm, the norms' roots, the loss; and of all products some.
    for name in ("exp", "log", "rsqrt", "sqrt", "square", "integer_pow"):
        assert dtypes(name) <= {"f32"}, name
    assert dtypes("exp") == dtypes("log") == dtypes("rsqrt") == {"f32"}
    assert "bf16" in dtypes("dot_general")
    floats = [leaf for leaf in jax.tree.leaves(shape) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype("float32")}  # Parameters, optimizer state and metrics.
    loss = lambda params: jnp.sum(module.apply({"params": params}, batch()["inputs"]))  # noqa: E731
    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(jax.grad(loss), state.params))} == {
        jnp.dtype("float32")
    }
