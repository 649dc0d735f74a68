"""Attention without a softmax, whose past is a state of fixed size: linear attention, and the gated delta rule.

Shapes: B batch, T length, D model width, N heads, H head width, C taps of a convolution.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from configs.derived import head_width
from configs.schema import Config
from model import chunks, kept
from model.attention import Places, key_and_value, output, query
from model.layers import Linear, Norm
from model.lens.places import recorded, tap


class LinearAttention(nn.Module):
    """Attention whose weights are phi(q) phi(k), divided by their sum, with phi(x) = elu(x) + 1.

    Katharopoulos et al. 2020, section 3.2. What is kept of the past is the sum of phi(k) v^T and, for the division, of
    phi(k). Reads and writes a `cache` collection if given one.
    """

    config: Config

    @nn.compact
    def __call__(self, x_BTD: jax.Array, places: Places, window: jax.Array) -> jax.Array:
        """What each token reads from the text so far, [B,T,D]; there is no window."""
        config, real_BT11 = self.config, places.real_BT[:, :, None, None]
        begins_BT = places.begins_BT
        query_BTNH = tap(self, "query", _positive(query(config, x_BTD)))
        key_BTNH, value_BTNH = key_and_value(config, x_BTD)
        key_BTNH = tap(self, "key", jnp.where(real_BT11, _positive(key_BTNH), 0.0))
        value_BTNH = tap(self, "value", value_BTNH)
        # A value of 1 adds up the weights.
        value_BTNV = jnp.concatenate([value_BTNH, jnp.ones_like(value_BTNH[..., :1])], axis=-1).astype(jnp.float32)

        B, _, N, H = key_BTNH.shape
        state_BNHV = _get(self, "state", places, (B, N, H, H + 1), jnp.float32)
        read_BTNV, state_BNHV = chunks.linear_rule(query_BTNH, key_BTNH, value_BTNV, begins_BT, state_BNHV)
        _put(self, "state", places, state_BNHV)
        if recorded(self, "weights"):
            weights_BNTS = chunks.linear_weights(query_BTNH, key_BTNH, begins_BT)
            tap(self, "weights", weights_BNTS / _divisor(jnp.sum(weights_BNTS, axis=-1, keepdims=True)))
        read_BTNH = read_BTNV[..., :-1] / _divisor(read_BTNV[..., -1:])
        return output(self, read_BTNH.astype(x_BTD.dtype))


class DeltaAttention(nn.Module):
    """The gated delta rule: each token replaces what the state holds under its key, and the state fades.

    Yang et al. 2024 ("Gated Delta Networks"), section 3: a short convolution and SiLU before queries, keys and values;
    queries and keys of length 1; what is read is normalized for each head and gated. Reads and writes a `cache`
    collection if given one.
    """

    config: Config

    @nn.compact
    def __call__(self, x_BTD: jax.Array, places: Places, window: jax.Array) -> jax.Array:
        """What each token reads from the text so far, [B,T,D]; there is no window."""
        config, model = self.config, self.config.model
        N, H = model.num_heads, head_width(config)
        begins_BT = places.begins_BT
        x_BT3NH = jnp.stack([query(config, x_BTD), *key_and_value(config, x_BTD)], axis=2)
        if model.convolution:
            before = _get(self, "before", places, (len(x_BTD), model.convolution - 1, 3, N, H), x_BTD.dtype)
            convolution = Convolution(config, name="convolution")
            x_BT3NH, after = convolution(x_BT3NH, begins_BT, places.real_BT, before)
            _put(self, "before", places, after)
        x_BT3NH = nn.silu(x_BT3NH.astype(jnp.float32))
        query_BTNH, key_BTNH, value_BTNH = (x_BT3NH[:, :, i] for i in range(3))
        query_BTNH, key_BTNH = tap(self, "query", _unit(query_BTNH) * H**-0.5), tap(self, "key", _unit(key_BTNH))
        value_BTNH = tap(self, "value", value_BTNH)
        real_BT1 = places.real_BT[:, :, None]
        strength_BTN = jax.nn.sigmoid(Linear(config, (model.width,), (N,), name="beta")(x_BTD).astype(jnp.float32))
        strength_BTN = jnp.where(real_BT1, strength_BTN, 0.0)
        log_decay_BTN = jnp.where(real_BT1, Decay(config, name="decay")(x_BTD), 0.0)

        read_BTNH, state_BNHH = chunks.delta_rule(
            query_BTNH, key_BTNH, value_BTNH, strength_BTN, log_decay_BTN, begins_BT,
            _get(self, "state", places, (len(x_BTD), N, H, H), jnp.float32),
        )  # fmt: skip
        _put(self, "state", places, state_BNHH)
        if recorded(self, "weights"):
            tap(self, "weights", chunks.delta_weights(query_BTNH, key_BTNH, strength_BTN, log_decay_BTN, begins_BT))
        gate_BTNH = Linear(config, (model.width,), (N, H), name="output_gate")(x_BTD)
        read_BTNH = Norm(config, "rms", name="read_norm")(read_BTNH) * nn.silu(gate_BTNH.astype(jnp.float32))
        return output(self, read_BTNH.astype(x_BTD.dtype))


class Decay(nn.Module):
    """How much of the state is left after each token: exp(-exp(rate) softplus(x W + bias)), as in Mamba 2.

    Starts as there (Gu & Dao 2023, section 3.6, and Dao & Gu 2024): steps of 0.001 to 0.1, rates of 1 to 16.
    """

    config: Config

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """The logarithm of the share that is left, [B,T,N] float32, at most 0."""
        model, (D, N) = self.config.model, (self.config.model.width, self.config.model.num_heads)
        dtype = jnp.dtype(model.param_dtype)
        kernel_DN = self.param("kernel", nn.initializers.normal(1 / math.sqrt(D)), (D, N), dtype)
        bias_N = self.param("bias", _initial_step, (N,), dtype).astype(jnp.float32)
        rate_N = self.param("rate", _initial_rate, (N,), dtype).astype(jnp.float32)
        step_BTN = jnp.einsum("BTD,DN->BTN", x_BTD, kernel_DN.astype(x_BTD.dtype), preferred_element_type=jnp.float32)
        return -jnp.exp(rate_N)[None, None] * jax.nn.softplus(step_BTN + bias_N[None, None])


class Convolution(nn.Module):
    """Each number becomes a weighted sum of itself and of the same number of the tokens before it, in its own text."""

    config: Config

    @nn.compact
    def __call__(
        self, x_BT3NH: jax.Array, begins_BT: jax.Array, real_BT: jax.Array, before_BC3NH: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Map queries, keys and values [B,T,3,N,H], and return the last C-1 of them for the next call.

        `before_BC3NH` are those of the last call, or zeros. What is returned is right if padding stands only behind a
        row's real tokens.
        """
        model, C, T = self.config.model, self.config.model.convolution, x_BT3NH.shape[1]
        normal = nn.initializers.normal(1 / math.sqrt(C))
        taps_C3NH = self.param("taps", normal, (C, *x_BT3NH.shape[2:]), jnp.dtype(model.param_dtype))
        x = jnp.concatenate([before_BC3NH, x_BT3NH], axis=1)
        text = jnp.pad(jnp.cumsum(begins_BT.astype(jnp.int32), axis=1), ((0, 0), (C - 1, 0)))
        y_BT3NH = jnp.zeros_like(x_BT3NH)
        for at in range(C):
            same_BT = text[:, at : at + T] == text[:, C - 1 :]
            earlier_BT3NH = jnp.where(same_BT[:, :, None, None, None], x[:, at : at + T], 0)
            y_BT3NH = y_BT3NH + earlier_BT3NH * taps_C3NH[at][None, None].astype(x.dtype)
        last_BC = jnp.sum(real_BT, axis=1, dtype=jnp.int32)[:, None] + jnp.arange(C - 1, dtype=jnp.int32)[None]
        text_BC = jnp.take_along_axis(text, last_BC, axis=1)
        same_BC = text_BC == text_BC[:, -1:]
        after_BC3NH = jnp.take_along_axis(x, last_BC[:, :, None, None, None], axis=1)
        return y_BT3NH, jnp.where(same_BC[:, :, None, None, None], after_BC3NH, 0)


def _positive(x: jax.Array) -> jax.Array:
    return jax.nn.elu(x.astype(jnp.float32)) + 1.0


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


def _divisor(total: jax.Array) -> jax.Array:
    """A sum of weights, or where padding has none, something to divide by."""
    return jnp.maximum(total, 1e-30)


def _get(module: nn.Module, name: str, places: Places, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """What the cache has, or zeros."""
    known = module.has_variable("cache", name)
    return kept.recall(module, name, places.layer, dtype) if known else jnp.zeros(shape, dtype)


def _put(module: nn.Module, name: str, places: Places, value: jax.Array) -> None:
    """Write to the cache, if there is one."""
    if module.has_variable("cache", name):
        kept.keep(module, name, places.layer, value)


def _initial_rate(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    return jnp.log(jax.random.uniform(key, shape, minval=1.0, maxval=16.0)).astype(dtype)


def _initial_step(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    step = jnp.exp(jax.random.uniform(key, shape, minval=math.log(1e-3), maxval=math.log(1e-1)))
    return jnp.log(jnp.expm1(step)).astype(dtype)


def linear_cache_shapes(config: Config, rows: int, slots: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape (without layers) and dtype of the state, whose last column is the sum of keys; `slots` do not matter."""
    N, H = config.model.num_heads, head_width(config)
    return {"state": ((rows, N, H, H + 1), "float32")}


def delta_cache_shapes(config: Config, rows: int, slots: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape (without layers) and dtype of the state and of what the next convolution reads; `slots` do not matter."""
    N, H = config.model.num_heads, head_width(config)
    shapes: dict[str, tuple[tuple[int, ...], str]] = {"state": ((rows, N, H, H), "float32")}
    if config.model.convolution > 1:
        shapes["before"] = ((rows, config.model.convolution - 1, 3, N, H), config.model.dtype)
    return shapes
