"""From gradients to updates: schedules, optimizers, and what they need to know about each parameter."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from optax.contrib import (
    MuonDimensionNumbers,
    ScheduleFreeState,
    scale_by_muon,
    schedule_free,
    schedule_free_eval_params,
)

from configs.derived import in_use, times_wider
from configs.schema import Config, ConfigError
from model.lora import LORA, is_trained

Params = Any  # nested dict of arrays

# The update of an orthogonalized matrix gets the root mean square that Adam's updates have, so that one
# learning rate serves both (Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2).
MUON_RMS = 0.2
OUTER = "outer"  # What stands in no stack of layers.


@dataclass(frozen=True)
class Parameter:
    """What a parameter is: its kind, and how many of its axes count layers, inputs and outputs."""

    kind: str  # the last part of its name
    layer_axes: int  # 1 if layers are stacked on the leading axis, 1 more if experts are on the next
    input_axes: int
    output_axes: int

    @property
    def is_matrix(self) -> bool:
        """Whether it multiplies (or is looked up like a matrix), rather than shifts or scales."""
        return self.kind in ("kernel", "embedding", *LORA)


def parameter(path: tuple[Any, ...], ndim: int) -> Parameter:
    """What the parameter at `path` (of `jax.tree_util.tree_map_with_path`) with `ndim` axes is.

    The name decides; the number of axes alone would take a stack of norm scales [L, D] for a matrix.
    Raises ValueError for a name that it does not know.
    """
    names = [str(getattr(key, "key", key)) for key in path]
    kind = names[-1]
    if kind not in ("kernel", "embedding", "bias", "scale", "sinks", "rate", "taps", *LORA):
        raise ValueError(f"parameter {'/'.join(names)}: {kind!r} is no known kind; name it in train/optimizer.py")
    layer_axes = ("layers" in names) + ("experts" in names)
    if kind not in ("kernel", "embedding", *LORA):
        return Parameter(kind, layer_axes, 0, ndim - layer_axes)
    # Heads belong to what a projection writes ([D, N, H]), except after attention, where they are read.
    reads_heads = names[-2] == "output" and names[-3].endswith("attention") if len(names) > 2 else False
    input_axes = 2 if reads_heads and kind != "lora_out" else 1
    return Parameter(kind, layer_axes, input_axes, ndim - layer_axes - input_axes)


def schedule(config: Config) -> Callable[[jax.typing.ArrayLike], jax.Array]:
    """The learning rate as a function of the step (int, from 0); float32.

    Warm-up is linear and its first step already moves: step 0 has 1/warmup_steps of the peak. The last
    step, train.steps - 1, has exactly end_fraction of it. Schedule-Free keeps the learning rate after
    warm-up whatever the setting, because doing without a schedule is what the method is.
    """
    settings, steps = config.optimizer, config.train.steps
    peak, end = settings.learning_rate, settings.end_fraction
    shape = "constant" if settings.name == "schedule_free" else settings.schedule

    def learning_rate(step: jax.typing.ArrayLike) -> jax.Array:
        t = jnp.asarray(step, jnp.float32) + 1
        warmup = jnp.maximum(jnp.asarray(settings.warmup_steps, jnp.float32), 1.0)
        decay_steps = jnp.maximum(1.0, jnp.float32(steps) - settings.warmup_steps)
        if shape == "wsd":
            decay_steps = jnp.clip(jnp.round(jnp.float32(steps) * settings.decay_fraction), 1.0, decay_steps)
        left = jnp.clip((steps - t) / decay_steps, 0, 1)  # share of the decay that is still to come
        if shape == "cosine":
            factor = end + (1 - end) * 0.5 * (1 - jnp.cos(jnp.pi * left))
        elif shape in ("linear", "wsd"):
            factor = end + (1 - end) * left
        elif shape == "inverse_sqrt":
            factor = jax.lax.rsqrt(jnp.maximum(t / warmup, 1.0))
        else:
            factor = jnp.ones_like(t)
        return peak * jnp.where(t < settings.warmup_steps, t / warmup, factor)

    return learning_rate


def make_optimizer(config: Config, params_shape: Params) -> optax.GradientTransformation:
    """The optimizer that `config.optimizer` describes, for parameters shaped like `params_shape`.

    Its arithmetic and its updates are float32 whatever parameters and state are stored as.
    The chain is the same for all: clip by global norm, find a direction, add the decayed weights where the
    mask says so (decoupled, so times the learning rate), scale by the learning rate. `learning_rate` is
    comparable over adamw, adafactor, muon and schedule_free; lion wants a third to a tenth of it.
    """
    settings = config.optimizer
    rate = schedule(config)
    chain: list[Any] = [_direction(config, params_shape)]
    if times_wider(config) != 1:
        chain.append(_narrower_steps(config))
    if in_use(settings.weight_decay):
        mask = None if settings.decay_mask == "all" else decay_mask(params_shape)
        chain.append(optax.add_decayed_weights(settings.weight_decay, mask))
    chain.append(optax.scale_by_learning_rate(rate))
    if settings.name == "schedule_free":
        # Its own counter starts at 1, that of the chain inside at 0.
        chain = [schedule_free(optax.chain(*chain), lambda count: rate(count - 1), b1=settings.beta1)]
    if in_use(settings.clip_norm):
        chain.insert(0, optax.clip_by_global_norm(settings.clip_norm))
    return _only_trained(config, params_shape, _in_float32(optax.chain(*chain), settings.state_dtype))


def _narrower_steps(config: Config) -> optax.GradientTransformation:
    """With µP, kernels of layers learn slower in a wider network, as each of their outputs sums over more inputs.

    Yang et al. 2022 ("Tensor Programs V"), table 8, for optimizers whose updates are of a size of their own. What is
    looked up (embeddings) and what shifts or scales is left alone, and so is the output layer, whose logits are scaled
    instead (`configs.derived.logit_scale`). Decay is added behind this: it pulls as much at each width.
    """

    def scale(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        this = parameter(path, x.ndim)
        return x / times_wider(config) if this.kind == "kernel" and this.layer_axes else x

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates))


def _only_trained(
    config: Config, params_shape: Params, inner: optax.GradientTransformation
) -> optax.GradientTransformation:
    """`inner` for the parameters that are trained; the others get no update, and nothing is kept for them."""
    if not config.model.lora_rank:
        return inner

    def label(path: tuple[Any, ...], _: Any) -> str:
        return "trained" if is_trained(config, jax.tree_util.keystr(path, simple=True, separator="/")) else "frozen"

    trained = {path.split("/")[-2] for path in flatten_dict(params_shape, sep="/") if path.endswith(LORA)}
    missing = [name for name in config.model.lora_targets.split(",") if name not in trained and name != "all"]
    if missing or not trained:
        raise ConfigError(
            f"--model.lora_targets={config.model.lora_targets}: this network has no linear map "
            f"{' or '.join(missing) or 'at all'} that low-rank matrices can stand beside"
            + (f"; it has {', '.join(sorted(trained))}." if trained else ", so there is nothing to train.")
        )
    labels = jax.tree_util.tree_map_with_path(label, params_shape)
    return optax.partition({"trained": inner, "frozen": optax.set_to_zero()}, labels)


def decay_mask(params: Params) -> Params:
    """True for matrices (kernels and embeddings), False for norms, biases and sinks; shaped like `params`."""
    return jax.tree_util.tree_map_with_path(lambda path, x: parameter(path, x.ndim).is_matrix, params)


def evaluation_params(config: Config, state: Any) -> Params:
    """The parameters to evaluate and sample with, in the dtype of `state.params`.

    These are the moving average (`state.ema`) if it is on, Schedule-Free's average x, which is kept as
    `state.params` (y) and a part of `state.opt_state` (z), or simply `state.params`.
    """
    if in_use(config.optimizer.ema_decay):
        average = state.ema
    elif config.optimizer.name == "schedule_free":
        is_state = lambda node: isinstance(node, ScheduleFreeState)  # noqa: E731
        (found,) = filter(is_state, jax.tree.leaves(state.opt_state, is_leaf=is_state))
        average = schedule_free_eval_params(found, _cast(state.params, jnp.float32))
    else:
        return state.params
    return jax.tree.map(lambda mean, x: mean.astype(x.dtype), average, state.params)


def _direction(config: Config, params_shape: Params) -> optax.GradientTransformation:
    """The part that differs between optimizers: a gradient becomes a direction of about unit size."""
    settings = config.optimizer
    beta1, beta2, epsilon = settings.beta1, settings.beta2, settings.epsilon
    if settings.name == "adamw":  # Loshchilov and Hutter 2019
        return optax.scale_by_adam(beta1, beta2, epsilon)
    if settings.name == "lion":  # Chen et al. 2023
        return optax.scale_by_lion(beta1, beta2)
    if settings.name == "sgd":
        return optax.trace(beta1)
    if settings.name == "schedule_free":  # Defazio et al. 2024; Adam without its momentum
        return optax.scale_by_rms(beta2, epsilon, eps_in_sqrt=False, bias_correction=True)
    if settings.name == "adafactor":  # Shazeer and Stern 2018, with beta2 capped as in Zhai et al. 2021, section 3.4

        def decay(step: Any, power: Any) -> jax.Array:
            return jnp.minimum(1.0 - (step + 1.0) ** -power, beta2)

        scale = optax.scale_by_factored_rms(decay_rate_fn=decay, min_dim_size_to_factor=32)
        return optax.chain(
            _per_matrix(optax.chain(scale, optax.clip_by_block_rms(1.0))), optax.ema(beta1, debias=False)
        )
    if settings.name == "muon":
        return _muon(beta1, beta2, epsilon, params_shape)
    raise ConfigError(f"--optimizer.name={settings.name} is not an optimizer")


def _muon(beta1: float, beta2: float, epsilon: float, params_shape: Params) -> optax.GradientTransformation:
    """Muon (Jordan 2024) for the kernels inside layers, each layer's by itself; Adam for everything else."""

    def label(path: tuple[Any, ...], x: Any) -> str:
        this = parameter(path, x.ndim)
        return "muon" if this.kind == "kernel" and this.layer_axes else "adam"

    def axes(path: tuple[Any, ...], x: Any) -> MuonDimensionNumbers:
        this = parameter(path, x.ndim)
        split = this.layer_axes + this.input_axes
        return MuonDimensionNumbers(tuple(range(this.layer_axes, split)), tuple(range(split, x.ndim)))

    def scale(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        numbers = axes(path, x)
        inputs, outputs = (math.prod(x.shape[i] for i in group) for group in numbers)  # type: ignore[union-attr]
        return x * (MUON_RMS * math.sqrt(max(inputs, outputs)))

    map_with_path = jax.tree_util.tree_map_with_path
    orthogonalize = scale_by_muon(beta=beta1, weight_dimension_numbers=lambda updates: map_with_path(axes, updates))
    muon = optax.chain(orthogonalize, optax.stateless(lambda updates, _: map_with_path(scale, updates)))
    adam = optax.scale_by_adam(beta1, beta2, epsilon)
    return optax.partition({"muon": muon, "adam": adam}, map_with_path(label, params_shape))


def _per_matrix(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Runs `inner` on each layer's tensors by themselves, with heads merged, so that it sees true matrices."""

    def split(tree: Params) -> dict[str, Params]:
        def to_matrix(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
            this = parameter(path, x.ndim)
            if not this.is_matrix:
                return x
            layers, rest = x.shape[: this.layer_axes], x.shape[this.layer_axes :]
            return x.reshape((*layers, math.prod(rest[: this.input_axes]), -1))

        parts: dict[str, Params] = {OUTER: {}}
        for path, value in flatten_dict(jax.tree_util.tree_map_with_path(to_matrix, tree), sep="/").items():
            stack, inside, _ = path.rpartition("layers/")  # `encoder/layers/...` is a stack of its own.
            parts.setdefault(f"{stack}layers" if inside else OUTER, {})[path] = value
        return parts

    def init(params: Params) -> Any:
        return {
            name: (inner.init if name == OUTER else jax.vmap(inner.init))(part) for name, part in split(params).items()
        }

    def update(updates: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        parts, weights = split(updates), split(params)
        merged, new_state = {}, {}
        for name, part in parts.items():
            step = inner.update if name == OUTER else jax.vmap(inner.update)
            changed: Any
            changed, new_state[name] = step(part, state[name], weights[name])
            merged.update(changed)
        merged = unflatten_dict(merged, sep="/")
        return jax.tree.map(lambda x, like: x.reshape(like.shape), merged, updates), new_state

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def _in_float32(inner: optax.GradientTransformation, state_dtype: str) -> optax.GradientTransformation:
    """Runs `inner` in float32 and stores its averages as `state_dtype`."""

    def init(params: Params) -> Any:
        return _cast_averages(inner.init(_cast(params, jnp.float32)), state_dtype)

    def update(updates: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        state = _cast_averages(state, "float32")
        with jax.numpy_dtype_promotion("standard"):  # Optax mixes floats with integer counters.
            updates, state = inner.update(_cast(updates, jnp.float32), state, _cast(params, jnp.float32))
        return updates, _cast_averages(state, state_dtype)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def _cast_averages(state: Any, dtype: str) -> Any:
    """The state with all that it averages for each parameter in another dtype."""

    def cast(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        of_parameter = isinstance(path[-1], jax.tree_util.DictKey)  # Counters and constants are fields.
        kept = any(getattr(key, "name", "") == "z" for key in path)  # Parameters themselves, in Schedule-Free.
        return leaf.astype(dtype) if of_parameter and not kept and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree_util.tree_map_with_path(cast, state)


def _cast(tree: Params, dtype: Any) -> Params:
    return jax.tree.map(lambda x: x.astype(dtype), tree)
