"""Attention whose weights somebody wants to see or to change: as many of them at once as have to be.

Shapes: B batch, T query length, S key length, N heads, K key/value heads, H head width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from model.lens.places import asked_part, edited, path_of, put, recorded, reduced, tap
from model.masks import Sight
from model.sharding import platform

NAMES = ("scores", "weights")
AT_ONCE = 2**24  # Weights of a block of queries; 64 MiB.
LARGE = 2**28  # Weights of a layer that are not made at once, on a CPU, where no kernel goes without them.


def too_many(query_BTNH: jax.Array, sight: Sight) -> bool:
    """Whether a layer's weights would be more than is to be recorded of anything."""
    B, T, N, _ = query_BTNH.shape
    return platform() == "cpu" and B * N * T * sight.key_BS.shape[1] > LARGE


def watched(
    module: nn.Module,
    query_BTNH: jax.Array,
    sight: Sight,
    bias_BNTS: jax.Array | None,
    attend: Callable[..., tuple[jax.Array, jax.Array, jax.Array]],
) -> jax.Array | None:
    """What each query reads, [B,T,N,H], with `scores` and `weights` recorded; None if those of a few are enough.

    Args:
      attend: `dense` for some of the queries, given them, who they see, their bias, and a function of a name and a
        value that returns what to go on with.
    """
    part, encoder = asked_part(), path_of(module, "").startswith("encoder")
    names = [name for name in NAMES if recorded(module, name)]
    if any(edited(module, name) for name in NAMES) or (names and not (part.top or part.positions)):
        return attend(query_BTNH, sight, bias_BNTS, partial(tap, module))[0]

    def look(
        query_BQNH: jax.Array, sight: Sight, bias_BNQS: jax.Array | None, names: list[str] = names
    ) -> tuple[jax.Array, dict]:
        read_BQNH, weights_BNQS, scores_BNQS = attend(query_BQNH, sight, bias_BNQS, lambda _, value: value)
        values = {"scores": scores_BNQS, "weights": weights_BNQS}
        return read_BQNH, {name: reduced(name, values[name]) for name in names}

    if part.positions is not None and not encoder:
        at = jnp.array(part.positions)
        few = None if bias_BNTS is None else bias_BNTS[:, :, at] if bias_BNTS.shape[2] > 1 else bias_BNTS
        _, kept = look(query_BTNH[:, at], _of_queries(sight, lambda x_BT: x_BT[:, at]), few)
        for name in names:
            put(module, name, kept[name])
        return (
            _in_blocks(module, query_BTNH, sight, bias_BNTS, partial(look, names=[]))
            if too_many(query_BTNH, sight)
            else None
        )
    return _in_blocks(module, query_BTNH, sight, bias_BNTS, look)


def _in_blocks(
    module: nn.Module, query_BTNH: jax.Array, sight: Sight, bias_BNTS: jax.Array | None, look: Callable
) -> jax.Array:
    B, T, N, _ = query_BTNH.shape
    Q = min(T, max(1, AT_ONCE // (B * N * sight.key_BS.shape[1])))
    blocks = -(-T // Q)

    def fill(x: jax.Array, axis: int = 1) -> jax.Array:
        return jnp.pad(x, [(0, blocks * Q - T if place == axis else 0) for place in range(x.ndim)])

    query_BTNH, sight = fill(query_BTNH), _of_queries(sight, fill)
    bias_BNTS = fill(bias_BNTS, 2) if bias_BNTS is not None and bias_BNTS.shape[2] > 1 else bias_BNTS

    def block(start: jax.Array) -> tuple[jax.Array, dict]:
        cut = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=Q)
        few = bias_BNTS if bias_BNTS is None or bias_BNTS.shape[2] == 1 else cut(bias_BNTS, axis=2)
        return look(cut(query_BTNH, axis=1), _of_queries(sight, partial(cut, axis=1)), few)

    read, kept = jax.lax.map(block, jnp.arange(blocks) * Q)

    def join(x: jax.Array, axis: int) -> jax.Array:
        """Blocks [blocks,...,Q,...] in a row, without what was filled in."""
        x = jnp.moveaxis(x, 0, axis)
        x = x.reshape(*x.shape[:axis], blocks * Q, *x.shape[axis + 2 :])
        return jax.lax.slice_in_dim(x, 0, T, axis=axis)

    for name, values in kept.items():
        put(module, name, tuple(join(value, value.ndim - 3) for value in values))
    return join(read, 1)


def _of_queries(sight: Sight, change: Callable[[jax.Array], jax.Array]) -> Sight:
    segments_BT = None if sight.query_segments_BT is None else change(sight.query_segments_BT)
    return dataclasses.replace(sight, query_BT=change(sight.query_BT), query_segments_BT=segments_BT)
