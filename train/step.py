"""The one training step: a pure function from (state, batch) to (state, metrics)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax

from configs.derived import in_use
from configs.schema import Config
from model import Source
from model.experts import LOSSES
from model.lora import is_trained
from model.sharding import init_params, interleaved, param_shardings, ways
from train.loss import Loss, output_loss
from train.optimizer import schedule

# inputs, targets, segments, positions, each [B, T] int32; weights [B, T] where not every target counts; with pairs,
# source, source_segments and source_positions, each [B, S]
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]

# A spike is judged against an average over about 50 steps, once there are that many. Near a loss of zero,
# where a multiple of the average is still nothing, it must exceed the multiple of this many nats.
SPIKE_STEPS = 50
SPIKE_FLOOR = 0.3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step reads and writes."""

    step: jax.Array  # int32 scalar: steps done, so also the number of the next batch
    params: Any
    opt_state: Any
    ema: Any  # float32 moving average of params, or None where it is off
    loss_average: jax.Array  # float32 scalar, nats per target; 0 until there was a step


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def network_inputs(batch: Batch) -> dict[str, Any]:
    """What the network is called with, by name."""
    source = None
    if "source" in batch:
        source = Source(batch["source"], batch["source_positions"], batch["source_segments"])
    return {
        "tokens_BT": batch["inputs"],
        "positions_BT": batch["positions"],
        "segments_BT": batch["segments"],
        "source": source,
    }


def target_weights(batch: Batch) -> jax.Array:
    """Which targets count, [B,T] float32: those that the batch says, or all that are no padding."""
    counts_BT = batch["weights"] if "weights" in batch else batch["segments"]
    return (counts_BT != 0).astype(jnp.float32)


def init_state(
    module: Any,
    optimizer: optax.GradientTransformation,
    config: Config,
    mesh: jax.sharding.Mesh,
    given: dict[str, jax.Array] | None = None,
) -> TrainState:
    """The state before the first step, computed in place on the devices of `mesh`; a function of train.seed.

    `given` are parameters by path (`layers/attention/query/kernel`) that replace random ones; they are donated.
    """
    state_fn = initial_state(module, optimizer, config)
    shardings = state_shardings(module, optimizer, config, mesh)
    with jax.set_mesh(mesh):
        start = jax.jit(state_fn, out_shardings=shardings, donate_argnums=1)
        return start(jax.random.key(config.train.seed), given or {})


def state_shape(
    module: Any, optimizer: optax.GradientTransformation, config: Config, mesh: jax.sharding.Mesh
) -> TrainState:
    """Shape, dtype and sharding of each leaf of the state (`jax.ShapeDtypeStruct`), without computing any.

    What the optimizer keeps for a parameter (its path ends with the parameter's, its shape is the same)
    lies as the parameter does; counters, factored moments and scalars are on every device.
    """
    shape = jax.eval_shape(initial_state(module, optimizer, config), jax.random.key(0), {})
    params = dict(jax.tree_util.tree_leaves_with_path(shape.params))
    lies = dict(zip(params, jax.tree.leaves(param_shardings(module, mesh)), strict=True))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        ends = (path[start:] for start in range(len(path)))
        owner = next((end for end in ends if end in params and params[end].shape == leaf.shape), None)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=lies[owner] if owner else everywhere)

    return jax.tree_util.tree_map_with_path(place, shape)


def state_shardings(
    module: Any, optimizer: optax.GradientTransformation, config: Config, mesh: jax.sharding.Mesh
) -> TrainState:
    """A NamedSharding for each leaf of the state; see `state_shape`."""
    return jax.tree.map(lambda leaf: leaf.sharding, state_shape(module, optimizer, config, mesh))


def make_train_step(
    module: Any,
    optimizer: optax.GradientTransformation,
    config: Config,
    byte_lengths_V: np.ndarray | None = None,
) -> TrainStep:
    """The pure function (state, batch) -> (state, metrics); `jit_train_step` compiles it.

    With train.microbatches M > 1 the gradient is summed over M parts of the batch, each of B/M rows, and
    equals that of the whole batch: every target weighs the same, whichever part it fell into. Dropout is a
    function of (seed, step, row), so it does not depend on M or on the devices either.

    Metrics, float32 scalars: train/loss (nats per target, without smoothing and z-loss), train/z_loss,
    train/grad_norm (before clipping), train/learning_rate, train/tokens (targets that counted),
    train/anomaly (1 where the update was not applied), and train/bits_per_byte if `byte_lengths_V` (int32,
    bytes of text that each token stands for) is given.
    """
    rate = schedule(config)
    grad_fn = jax.value_and_grad(_loss_fn(module, config), has_aux=True)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        weights_BT = target_weights(batch)
        count = jnp.maximum(jnp.sum(weights_BT), 1.0)
        key = jax.random.fold_in(jax.random.key(config.train.seed), state.step)
        rows_B = jnp.arange(batch["inputs"].shape[0], dtype=jnp.int32)
        gradient_of = lambda part: grad_fn(state.params, part, key, count)  # noqa: E731
        parts = config.train.microbatches if ways("layers") == 1 else 1  # A pipeline has its own way with them.
        grads, sums = _accumulate(gradient_of, {**batch, "rows": rows_B}, parts)

        loss, grad_norm = sums.nll / count, optax.global_norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda x, u: (x.astype(jnp.float32) + u).astype(x.dtype), state.params, updates)
        ema = _moving_average(config, state, params)
        updated = TrainState(state.step + 1, params, opt_state, ema, _loss_average(config, state, loss))
        anomaly = _is_anomaly(config, state, loss, grad_norm)
        metrics = {
            "train/loss": loss,
            "train/z_loss": sums.z / count,
            "train/grad_norm": grad_norm,
            "train/learning_rate": rate(state.step),
            "train/tokens": sums.targets,
            "train/anomaly": anomaly.astype(jnp.float32),
        }
        if byte_lengths_V is not None:
            bytes_BT = jnp.asarray(byte_lengths_V, jnp.float32)[batch["targets"]] * weights_BT
            metrics["train/bits_per_byte"] = sums.nll / np.log(2) / jnp.maximum(jnp.sum(bytes_BT), 1.0)
        kept = dataclasses.replace(_keep_unless(anomaly, state, updated), loss_average=updated.loss_average)
        return kept, metrics

    return train_step


def jit_train_step(train_step: TrainStep, state_sharding: TrainState, batch_sharding: Any) -> TrainStep:
    """`train_step` compiled; the state that goes in is donated and must not be used again."""
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(state_sharding, batch_sharding),
        out_shardings=(state_sharding, None),
    )


def initial_state(
    module: Any, optimizer: optax.GradientTransformation, config: Config
) -> Callable[[jax.Array, dict[str, jax.Array]], TrainState]:
    """(key, given parameters by path) -> the state before the first step; `init_state` compiles it."""

    def state_fn(key: jax.Array, given: dict[str, jax.Array]) -> TrainState:
        params = unflatten_dict({**flatten_dict(init_params(module, key), sep="/"), **given}, sep="/")
        ema = jax.tree.map(lambda x: x.astype(jnp.float32), params) if in_use(config.optimizer.ema_decay) else None
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema, jnp.zeros((), jnp.float32))

    return state_fn


def _loss_fn(module: Any, config: Config) -> Callable[..., tuple[jax.Array, Loss]]:
    """(params, batch, key, count) -> (objective / count, sums); `count` is that of the whole batch."""
    smoothing, z_loss = config.train.label_smoothing, config.train.z_loss

    def frozen(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        return x if is_trained(config, jax.tree_util.keystr(path, simple=True, separator="/")) else lax.stop_gradient(x)

    def loss_fn(params: Any, batch: Batch, key: jax.Array, count: jax.Array) -> tuple[jax.Array, Loss]:
        params = jax.tree_util.tree_map_with_path(frozen, params)
        x_BTD, variables = module.apply(
            {"params": params}, **network_inputs(batch), rows_B=batch["rows"],
            deterministic=not in_use(config.model.dropout), head=False, rngs={"dropout": key}, mutable=[LOSSES],
        )  # fmt: skip
        sums = output_loss(module.config, params, x_BTD, batch["targets"], target_weights(batch), smoothing, z_loss)
        extra = sum((jnp.sum(loss) for loss in jax.tree.leaves(variables)), start=jnp.float32(0))
        return (sums.objective + extra) / count, sums

    return loss_fn


def _accumulate(gradient_of: Callable[[Batch], Any], batch: Batch, parts: int) -> tuple[Any, Loss]:
    """Gradient and loss sums over `parts` microbatches, added up in float32."""
    if parts == 1:
        (_, sums), grads = gradient_of(batch)
        return grads, sums

    split = {name: interleaved(x, parts) for name, x in batch.items()}

    def add(total: Any, part: Batch) -> tuple[Any, None]:
        (_, sums), grads = gradient_of(part)
        return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), total, (grads, sums)), None

    first = jax.tree.map(lambda x: x[0], split)
    (_, sums_shape), grads_shape = jax.eval_shape(gradient_of, first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (grads_shape, sums_shape))
    return jax.lax.scan(add, zeros, split)[0]


def _moving_average(config: Config, state: TrainState, params: Any) -> Any:
    """The next `ema`; its decay starts low so that the initial weights are soon forgotten."""
    if state.ema is None:
        return None
    step = state.step.astype(jnp.float32)
    decay = jnp.minimum(config.optimizer.ema_decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda mean, x: decay * mean + (1 - decay) * x.astype(jnp.float32), state.ema, params)


def _is_anomaly(config: Config, state: TrainState, loss: jax.Array, grad_norm: jax.Array) -> jax.Array:
    anomaly = ~(jnp.isfinite(loss) & jnp.isfinite(grad_norm))
    if in_use(config.train.spike_factor):
        anomaly |= (state.step >= SPIKE_STEPS) & (loss > _spike_limit(config, state))
    return anomaly


def _spike_limit(config: Config, state: TrainState) -> jax.Array:
    return config.train.spike_factor * jnp.maximum(state.loss_average, SPIKE_FLOOR)


def _loss_average(config: Config, state: TrainState, loss: jax.Array) -> jax.Array:
    """The next `loss_average`. A spike counts as no more than the limit, so that a lasting change is accepted."""
    if in_use(config.train.spike_factor):
        loss = jnp.where(state.step < SPIKE_STEPS, loss, jnp.minimum(loss, _spike_limit(config, state)))
    average = jnp.where(state.step == 0, loss, state.loss_average + (loss - state.loss_average) / SPIKE_STEPS)
    return jnp.where(jnp.isfinite(loss), average, state.loss_average)


def _keep_unless(anomaly: jax.Array, old: TrainState, new: TrainState) -> TrainState:
    """`new`, or where `anomaly` is set `old` with its clocks moved on, so that every counter equals the step."""

    def choose(before: jax.Array, after: jax.Array) -> jax.Array:
        return after if jnp.issubdtype(after.dtype, jnp.integer) else jnp.where(anomaly, before, after)

    return jax.tree.map(choose, old, new)
