"""Who may look at whom. True is visible.

Shapes: B batch, T query length, S key length.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def distance(query_BT: jax.Array, key_BS: jax.Array) -> jax.Array:
    """How many tokens each key lies behind each query, [B,T,S] int32; negative lies ahead."""
    return query_BT[:, :, None] - key_BS[:, None, :]


def causal(distance_BTS: jax.Array) -> jax.Array:
    """A token sees itself and what came before, [B,T,S] bool."""
    return distance_BTS >= 0


def same_segment(query_BT: jax.Array, key_BS: jax.Array) -> jax.Array:
    """Documents packed into one row do not see each other, [B,T,S] bool."""
    return query_BT[:, :, None] == key_BS[:, None, :]


def in_window(distance_BTS: jax.Array, window: jax.Array | int) -> jax.Array:
    """A token sees itself and the `window`-1 nearest on each side; window 0 sees everything, [B,T,S] bool."""
    return (jnp.abs(distance_BTS) < window) | (jnp.asarray(window) == 0)
