"""Who may look at whom. True is visible.

Shapes: B batch, T query length, S key length.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Sight:
    """Who may look at whom, told by what decides it: a kernel that goes block by block needs no matrix [B,T,S].

    Segments are texts packed into one row, 0 for padding, or None where all is one text. Within a segment positions
    rise along a row.
    """

    query_BT: jax.Array  # Position of each query in its text, int32.
    key_BS: jax.Array  # The same of each key.
    query_segments_BT: jax.Array | None = None  # int32
    key_segments_BS: jax.Array | None = None
    causal: bool = flax.struct.field(pytree_node=False, default=False)  # A token sees itself and what came before.

    @property
    def segments(self) -> tuple[jax.Array, ...]:
        """The segments of queries and keys, or nothing where all is one text."""
        pair = self.query_segments_BT, self.key_segments_BS
        return () if pair[0] is None or pair[1] is None else (pair[0], pair[1])

    def distance(self) -> jax.Array:
        """How many tokens each key lies behind each query, [B,T,S] int32; negative lies ahead."""
        return distance(self.query_BT, self.key_BS)

    def visible(self, window: jax.Array | None = None) -> jax.Array:
        """The matrix, [B,T,S] bool, in a layer with this window (int32 scalar; None or 0 for none)."""
        distance_BTS = self.distance()
        visible_BTS = causal(distance_BTS) if self.causal else jnp.ones(distance_BTS.shape, bool)
        if window is not None:
            visible_BTS &= in_window(distance_BTS, window)
        if self.segments:
            visible_BTS &= same_segment(*self.segments)
        return visible_BTS


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
