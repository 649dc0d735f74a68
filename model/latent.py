"""Latent attention: keys and values of all heads are made from one small vector per token, which is all that is kept.

DeepSeek-AI 2024 (DeepSeek-V2), section 2.1. Rotary positions would have to be applied after that vector was widened;
they are carried by a few numbers of their own instead, which all heads share.

Shapes: B batch, T query length, S key length, D model width, N heads, H head width, R latent width, P rotated width.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from configs.derived import head_width, latent_rope_width, latent_width
from configs.schema import Config
from model import positions
from model.attention import Places, output, read, remember, rotation_of
from model.layers import Linear, Norm
from model.lens.places import looked_at, tap


class LatentAttention(nn.Module):
    """One layer of latent attention; reads and extends a `cache` collection if given one."""

    config: Config

    @nn.compact
    def __call__(self, x_BTD: jax.Array, places: Places, window: jax.Array) -> jax.Array:
        """What each token reads from the others, [B,T,D]; `window` is an int32 scalar, 0 for no window."""
        config, model = self.config, self.config.model
        N, H, R, P = model.num_heads, head_width(config), latent_width(config), latent_rope_width(config)
        query_BTNH, rotated_BTNP = jnp.split(self.query(x_BTD, N, H + P), [H], axis=-1)
        latent_BTR = Norm(config, "rms", name="latent_norm")(Linear(config, (model.width,), (R,), name="latent")(x_BTD))
        kept = {"latent": latent_BTR}
        rotation = rotation_of(places, window)
        if rotation is not None:
            rotated_BTNP = positions.rotate(rotated_BTNP, rotation)
            key_BT1P = Linear(config, (model.width,), (P,), name="key_rotated")(x_BTD)[:, :, None]
            kept["rotated"] = positions.rotate(key_BT1P, rotation)[:, :, 0]
        kept = remember(self, kept, places)
        watched = any(looked_at(self, name) for name in ("query", "key", "value"))

        key_RNH = HeadMap(config, (R, N, H), name="key")()
        value_RNH = HeadMap(config, (R, N, H), name="value")()
        scale = model.attention_scale or (H + P) ** -0.5
        # What somebody looks at is made, although it may not be needed.
        absorbs = not watched and absorbing_is_cheaper(x_BTD.shape[1], kept["latent"].shape[1], R, H)
        if absorbs:  # What a head's key would be made with turns its query instead, and the latent is key and value.
            query_BTNH = jnp.einsum("BTNH,RNH->BTNR", query_BTNH, key_RNH)
            key_BSKH = value_BSKH = kept["latent"][:, :, None]
        else:
            key_BSKH = checkpoint_name(jnp.einsum("BSR,RNH->BSNH", kept["latent"], key_RNH), "key")
            value_BSKH = checkpoint_name(jnp.einsum("BSR,RNH->BSNH", kept["latent"], value_RNH), "value")
        if rotation is not None:
            query_BTNH = jnp.concatenate([query_BTNH, rotated_BTNP], axis=-1)
            shared_BSKP = jnp.broadcast_to(kept["rotated"][:, :, None], (*key_BSKH.shape[:3], P))
            key_BSKH = jnp.concatenate([key_BSKH, shared_BSKP], axis=-1)
        if watched:
            query_BTNH = tap(self, "query", query_BTNH)
            key_BSKH, value_BSKH = self.new("key", key_BSKH, places), self.new("value", value_BSKH, places)
        read_BTNH = read(self, query_BTNH, key_BSKH, value_BSKH, places, window, scale)
        if absorbs:
            read_BTNH = jnp.einsum("BTNR,RNH->BTNH", read_BTNH, value_RNH)
        return output(self, read_BTNH)

    def new(self, name: str, values_BSNH: jax.Array, places: Places) -> jax.Array:
        """Keys or values, of which those of the tokens that are read now can be seen and changed: they alone are new.

        A cache keeps latents, so what is changed here is forgotten after this call.
        """
        if not self.has_variable("cache", "latent"):
            return tap(self, name, values_BSNH)
        at = values_BSNH.at[jnp.arange(len(values_BSNH))[:, None], places.slot_BT]
        return at.set(tap(self, name, at.get(mode="clip")), mode="drop")

    def query(self, x_BTD: jax.Array, heads: int, width: int) -> jax.Array:
        """What each token asks, [B,T,N,width], from the token or from a latent of it."""
        config, narrow = self.config, self.config.model.query_latent_width
        if narrow:
            x_BTD = Linear(config, (config.model.width,), (narrow,), name="query_latent")(x_BTD)
            x_BTD = Norm(config, "rms", name="query_latent_norm")(x_BTD)
        return Linear(config, x_BTD.shape[2:], (heads, width), bias=False, name="query")(x_BTD)


class HeadMap(nn.Module):
    """The kernel of a linear map from a latent to all heads, which is not always applied to the latent."""

    config: Config
    shape: tuple[int, int, int]

    @nn.compact
    def __call__(self) -> jax.Array:
        """The kernel [R,N,H] in the dtype of computing."""
        model = self.config.model
        normal = nn.initializers.normal(1 / math.sqrt(self.shape[0]))
        return self.param("kernel", normal, self.shape, jnp.dtype(model.param_dtype)).astype(model.dtype)


def absorbing_is_cheaper(queries: int, keys: int, latent: int, head: int) -> bool:
    """Whether fewer multiplications are needed if keys and values are never made from the latents.

    Then each query's product with a key is as wide as the latent; but only queries and what they read, not all keys and
    values, go through the maps between latent and heads.
    """
    return queries * keys * (latent - head) + queries * latent * head < keys * latent * head


def cache_shapes(config: Config, rows: int, slots: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape (without layers) and dtype of what is kept: latents, and rotated keys if positions are rotary."""
    shapes = {"latent": ((rows, slots, latent_width(config)), config.model.dtype)}
    if config.model.position == "rope":
        shapes["rotated"] = ((rows, slots, latent_rope_width(config)), config.model.dtype)
    return shapes
