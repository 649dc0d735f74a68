"""What a layer keeps of the tokens read so far, in the collection `cache`.

All layers' keys and values are one array that goes through the layers whole, and each layer writes its own tokens into
it: cut into layers and put together again, all of it would be copied for every token.

Shapes: L layers, B rows, T new tokens, S slots.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from model.sharding import platform

RING = "ring_"  # What the names begin with under which layers with a window keep no more than it.


def kept_dtype(dtype: str) -> jnp.dtype:
    """In which numbers of this dtype are kept where they are sliced."""
    return jnp.dtype(jnp.uint16) if dtype == "bfloat16" and platform() == "cpu" else jnp.dtype(dtype)


def to_bits(x: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Numbers as they are kept."""
    x = x.astype(dtype)
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if kept_dtype(x.dtype.name) == jnp.uint16 else x


def from_bits(x: jax.Array) -> jax.Array:
    """What was kept: bits as float32, anything else as it is."""
    if x.dtype != jnp.uint16:
        return x
    return jax.lax.bitcast_convert_type(x.astype(jnp.uint32) << jnp.uint32(16), jnp.float32)


def recall(module: nn.Module, name: str, layer: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """What this layer (int32 scalar) has kept under a name."""
    kept = jax.lax.dynamic_index_in_dim(module.get_variable("cache", name), layer, keepdims=False)
    return from_bits(kept).astype(dtype)


def keep(module: nn.Module, name: str, layer: jax.Array, value: jax.Array) -> None:
    """Replace what this layer has kept under a name."""
    kept_L = module.get_variable("cache", name)
    value = _as_kept(value, kept_L)
    module.put_variable("cache", name, jax.lax.dynamic_update_index_in_dim(kept_L, value, layer, 0))


def keep_tokens(module: nn.Module, new: dict[str, jax.Array], layer: jax.Array, slots_BT: jax.Array) -> None:
    """Write what is kept of each token, [B,T,...], into its slot.

    A token's slot is its position (in a ring: modulo its slots), so which are filled needs no record of its own.
    A slot beyond the cache is dropped: that is how padding stays out of it.
    """
    row_B1 = jnp.arange(slots_BT.shape[0], dtype=jnp.int32)[:, None]
    for name, new_BT in new.items():
        kept_LBS = module.get_variable("cache", name)
        new_BT = _as_kept(new_BT, kept_LBS)
        module.put_variable("cache", name, kept_LBS.at[layer, row_B1, slots_BT].set(new_BT, mode="drop"))


def _as_kept(value: jax.Array, kept: jax.Array) -> jax.Array:
    return to_bits(value, jnp.bfloat16) if kept.dtype == jnp.uint16 else value.astype(kept.dtype)
