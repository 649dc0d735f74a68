"""Multi-head attention: softmax(QK^T/sqrt(d))V, and nothing else.

Each token asks (query), each token that it may see offers (key), and what is read is the average of what they hold
(value), weighted by how well question and offer match. Vaswani et al. 2017, section 3.2.

Shapes: B batch, T query length, S key length, D model width, N heads, K key/value heads, H head width.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from configs.derived import attention_scale, head_width, num_kv_heads
from configs.schema import Config
from model import kept, kernels, positions
from model.layers import Linear, Norm, residual_gain
from model.lens.places import edited, looked_at, recording, tap
from model.lens.weights import too_many, watched
from model.masks import Sight
from model.remat import ATTENTION
from model.sharding import platform

Rotation = tuple[jax.Array, jax.Array]


@flax.struct.dataclass
class Ring:
    """Where the tokens stand in a cache that keeps as many as a window needs; see `Places`."""

    slot_BT: jax.Array
    sight: Sight


@flax.struct.dataclass
class Places:
    """Where the tokens stand: what every layer needs to know about it, computed once."""

    slot_BT: jax.Array  # Where each token is kept in a cache, int32: its position; padding lies beyond the cache.
    begins_BT: jax.Array  # The first token of a text, where a recurrent state starts anew, bool.
    real_BT: jax.Array  # Not padding, bool.
    rows_B: jax.Array  # Number of each row in the whole batch, int32.
    sight: Sight  # Who may look at whom.
    rotation: Rotation | None = None  # RoPE's cosines and sines.
    local_rotation: Rotation | None = None  # The same for layers with a window, where those have a base of their own.
    bias_BNTS: jax.Array | None = None  # Added to the scores (its first axes may be 1), float32.
    slopes_N: jax.Array | None = None  # ALiBi's: what each head's scores lose per token of distance, float32.
    source_sight: Sight | None = None  # The source tokens that belong to each token's text.
    layer: Any = None  # Number of the layer, int32 scalar, which it says itself: there stands what it keeps in a cache.
    ring: Ring | None = None  # For layers with a window, where the others keep more than they do.
    prefix: str = flax.struct.field(pytree_node=False, default="")  # Of the names under which a layer keeps tokens.

    def of_ring(self, ring: Ring) -> Places:
        """The same for a layer that keeps its tokens in a ring."""
        return dataclasses.replace(self, slot_BT=ring.slot_BT, sight=ring.sight, ring=None, prefix=kept.RING)


class Attention(nn.Module):
    """One layer of multi-head attention; reads and extends a `cache` collection if given one."""

    config: Config

    @nn.compact
    def __call__(self, x_BTD: jax.Array, places: Places, window: jax.Array) -> jax.Array:
        """What each token reads from the others, [B,T,D]; `window` is an int32 scalar, 0 for no window."""
        config = self.config
        query_BTNH = query(config, x_BTD)
        key_BSKH, value_BSKH = key_and_value(config, x_BTD)
        rotation = rotation_of(places, window)
        if rotation is not None:
            query_BTNH = positions.rotate(query_BTNH, rotation)
            key_BSKH = positions.rotate(key_BSKH, rotation)
        query_BTNH, key_BSKH = tap(self, "query", query_BTNH), tap(self, "key", key_BSKH)
        if places.ring is not None and window > 0:  # Only where layers are apart, and know their window.
            places = places.of_ring(places.ring)
        known = remember(self, {"key": key_BSKH, "value": tap(self, "value", value_BSKH)}, places)
        read_BTNH = read(self, query_BTNH, known["key"], known["value"], places, window)
        return output(self, read_BTNH)


class CrossAttention(nn.Module):
    """What a text that is being written reads from the text that it translates (Vaswani et al. 2017, section 3.2.3)."""

    config: Config

    @nn.compact
    def __call__(self, x_BTD: jax.Array, places: Places, memory_BSD: jax.Array | None) -> jax.Array:
        """What each token reads from the encoded source, [B,T,D]; with `memory_BSD` None, from the cache."""
        query_BTNH = tap(self, "query", query(self.config, x_BTD))
        if memory_BSD is not None:
            key_BSKH, value_BSKH = key_and_value(self.config, memory_BSD)
            key_BSKH, value_BSKH = tap(self, "key", key_BSKH), tap(self, "value", value_BSKH)
            if self.has_variable("cache", "key"):
                kept.keep(self, "key", places.layer, key_BSKH)
                kept.keep(self, "value", places.layer, value_BSKH)
        else:
            key_BSKH, value_BSKH = (
                kept.recall(self, name, places.layer, query_BTNH.dtype) for name in ("key", "value")
            )
        assert places.source_sight is not None
        places = dataclasses.replace(places, sight=places.source_sight, bias_BNTS=None, slopes_N=None)
        read_BTNH = read(self, query_BTNH, key_BSKH, value_BSKH, places, window=None)
        return output(self, read_BTNH)


def remember(module: nn.Module, new: dict[str, jax.Array], places: Places) -> dict[str, jax.Array]:
    """Write what is kept of each token, [B,T,...], into the layer's cache and return all of it; without one, `new`."""
    if not all(module.has_variable("cache", f"{places.prefix}{name}") for name in new):
        return new
    kept.keep_tokens(
        module, {f"{places.prefix}{name}": value for name, value in new.items()}, places.layer, places.slot_BT
    )
    return {
        name: kept.recall(module, f"{places.prefix}{name}", places.layer, value.dtype) for name, value in new.items()
    }


def rotation_of(places: Places, window: jax.Array) -> Rotation | None:
    """RoPE's cosines and sines in a layer with this window (0 for none); None without RoPE."""
    if places.rotation is None or places.local_rotation is None:
        return places.rotation
    cos, sin = (
        jnp.where(window > 0, near, far) for far, near in zip(places.rotation, places.local_rotation, strict=True)
    )
    return cos, sin


def query(config: Config, x_BTD: jax.Array) -> jax.Array:
    """What each token asks, [B,T,N,H]."""
    return _project(config, "query", x_BTD, config.model.num_heads)


def key_and_value(config: Config, x_BSD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What each token offers and what it holds, each [B,S,K,H]."""
    K = num_kv_heads(config)
    return _project(config, "key", x_BSD, K), _project(config, "value", x_BSD, K)


def _project(config: Config, name: str, x_BTD: jax.Array, heads: int) -> jax.Array:
    model, H = config.model, head_width(config)
    y_BTNH = Linear(config, (model.width,), (heads, H), bias=model.biases or model.qkv_biases, name=name)(x_BTD)
    if name == "value" or model.qk_norm == "none":
        return y_BTNH
    norm = Norm(config, "rms", name=f"{name}_norm")
    if model.qk_norm == "head":
        return norm(y_BTNH)
    return norm(y_BTNH.reshape(*x_BTD.shape[:2], heads * H)).reshape(y_BTNH.shape)


def read(
    module: nn.Module,
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    places: Places,
    window: jax.Array | None,
    scale: float = 0.0,
) -> jax.Array:
    """The average of the values that each query may see, by the kernel of the config, [B,T,N,H of the values].

    Scores are multiplied by `scale`, 0 for what the config says; `window` is an int32 scalar, 0 or None for none.
    To be called in the compact method of `module`, a layer of attention: its weights and scores are recorded there.
    """
    config: Config = module.config  # type: ignore[attr-defined]
    model = config.model
    N = query_BTNH.shape[2]
    scale = scale or attention_scale(config)
    sight, sinks_N = places.sight, None
    if model.attention_sinks:
        sinks_N = module.param("sinks", nn.initializers.zeros, (N,), jnp.dtype(model.param_dtype))
    window = window if model.window else None
    kernel, wanted = "dense", looked_at(module, "weights") or looked_at(module, "scores")
    if wanted or (recording(module) and not module.is_initializing() and too_many(query_BTNH, sight)):
        read_BTNH = watched(
            module, query_BTNH, sight, places.bias_BNTS,
            lambda query_BTNH, sight, bias_BNTS, look: kernels.dense(
                query_BTNH, key_BSKH, value_BSKH, sight.visible(window), with_slopes(bias_BNTS, sight, places.slopes_N),
                scale=scale, softcap=model.attention_softcap, sinks_N=sinks_N, look=look,
            ),
        )  # fmt: skip
        if read_BTNH is not None:
            return read_BTNH
    if not module.is_initializing():
        causal = sight.causal and query_BTNH.shape[1] == key_BSKH.shape[1]
        kernel = kernels.choose(
            config, query_BTNH, key_BSKH, value_BSKH, causal=causal, biased=places.bias_BNTS is not None
        )
    has_keys = module.has_variable("cache", f"{places.prefix}key")
    cached = has_keys or module.has_variable("cache", "latent")
    if cached and kernel in (*kernels.BLOCKWISE, "chunked"):
        kernel = "dense"  # With few queries, nothing is gained by blocks.
    if kernel in kernels.BLOCKWISE:
        return kernels.blockwise(
            kernel, config, query_BTNH, key_BSKH, value_BSKH, sight,
            scale=scale, window=jnp.int32(0) if window is None else window, slopes_N=places.slopes_N, sinks_N=sinks_N,
        )  # fmt: skip
    if sight.causal and has_keys and platform() == "cpu":
        key_LBSKH, value_LBSKH = (module.get_variable("cache", f"{places.prefix}{name}") for name in ("key", "value"))
        read_BTNH = kernels.cached(  # From the cache itself, not from this layer's part of it, which would be copied.
            query_BTNH, key_LBSKH, value_LBSKH, places.layer, sight, places.bias_BNTS, scale=scale, window=window,
            softcap=model.attention_softcap, slopes_N=places.slopes_N, sinks_N=sinks_N, ring=places.prefix == kept.RING,
        )  # fmt: skip
        return checkpoint_name(read_BTNH, ATTENTION)
    visible_BTS, bias_BNTS = sight.visible(window), with_slopes(places.bias_BNTS, sight, places.slopes_N)
    if kernel == "fused":
        read_BTNH = kernels.fused(query_BTNH, key_BSKH, value_BSKH, visible_BTS, bias_BNTS, scale=scale)
        return checkpoint_name(read_BTNH, ATTENTION)
    kernel_of = kernels.chunked if kernel == "chunked" else kernels.dense
    found = kernel_of(
        query_BTNH, key_BSKH, value_BSKH, visible_BTS, bias_BNTS,
        scale=scale, softcap=model.attention_softcap, sinks_N=sinks_N,
    )  # fmt: skip
    return checkpoint_name(found if kernel == "chunked" else found[0], ATTENTION)


def with_slopes(bias_BNTS: jax.Array | None, sight: Sight, slopes_N: jax.Array | None) -> jax.Array | None:
    """What is added to the scores: a learned bias, or what ALiBi takes off by distance."""
    if slopes_N is None:
        return bias_BNTS
    return -slopes_N[None, :, None, None] * jnp.abs(sight.distance()).astype(jnp.float32)[:, None]


def output(module: nn.Module, read_BTNH: jax.Array) -> jax.Array:
    """What the heads read, mixed into the residual stream, [B,T,D]; to be called in the compact method of a layer."""
    config: Config = module.config  # type: ignore[attr-defined]
    read_BTNH = tap(module, "heads", read_BTNH)
    N, H = read_BTNH.shape[2:]
    mix = Linear(config, (N, H), (config.model.width,), gain=residual_gain(config), name="output")
    if not looked_at(module, "out_per_head"):
        return mix(read_BTNH)
    # Each head by itself: N rows for each token, all but one head's part of each 0.
    alone_BTNNH = read_BTNH[:, :, None] * jnp.eye(N, dtype=read_BTNH.dtype)[None, None, :, :, None]
    bias_BTD = mix(jnp.zeros_like(read_BTNH))
    wrote_BTND = tap(module, "out_per_head", mix(alone_BTNNH) - bias_BTD[:, :, None])
    return bias_BTD + jnp.sum(wrote_BTND, axis=2) if edited(module, "out_per_head") else mix(read_BTNH)
