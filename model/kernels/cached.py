"""Attention to what a cache holds, block by block of keys up to the longest text: for a CPU.

What lies behind the longest text is never read, and what lies in front of a window neither. Each block's weights are
added up with those of the blocks before it (online softmax, Milakov & Gimelshein 2018; Rabe & Staats 2021); a block in
which a query sees nothing changes none of its bits, so that a text is the same however long its neighbours are.

Shapes: L layers, B batch, T query length, S cache slots, s keys of a block, N heads, K key/value heads, G query heads
for each of them, H head width.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from model.kept import from_bits
from model.masks import Sight

BLOCK = 128  # Keys; fewer where the cache is no multiple of it.
LEAST = 8


def cached(
    query_BTNH: jax.Array,
    key_LBSKH: jax.Array,
    value_LBSKH: jax.Array,
    layer: jax.Array,
    sight: Sight,
    bias_BNTS: jax.Array | None = None,
    *,
    scale: float,
    window: jax.Array | None = None,
    softcap: float = 0.0,
    slopes_N: jax.Array | None = None,
    sinks_N: jax.Array | None = None,
    ring: bool = False,
) -> jax.Array:
    """The output of `dense` without its weights, [B,T,N,H] in the dtype of the queries.

    Keys and values are those of all layers, of which `layer` (int32 scalar) is read; the key in slot s has position s,
    or in a `ring` some position, and slots are filled from the first on.
    `window`, `slopes_N` and `sinks_N` are those of `ring`.
    """
    B, T, N, H = query_BTNH.shape
    S, K = key_LBSKH.shape[2:4]
    block = math.gcd(S, BLOCK)
    block = block if block >= LEAST else S
    computed = jnp.float32 if key_LBSKH.dtype == jnp.uint16 else query_BTNH.dtype
    query_BTKGH = (query_BTNH * jnp.asarray(scale, query_BTNH.dtype)).reshape(B, T, K, N // K, H).astype(computed)
    lowest = jnp.finfo(jnp.float32).min

    def read(kept_LBSKH: jax.Array, start: jax.Array) -> jax.Array:
        sizes = (1, B, block, K, H)
        zero = jnp.int32(0)
        return from_bits(jax.lax.dynamic_slice(kept_LBSKH, (layer, zero, start, zero, zero), sizes)[0])

    def add(number: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        highest_BNT, total_BNT, output_BNTH = carry
        start = number * block
        scores_BKGTs = jnp.einsum(
            "BTKGH,BSKH->BKGTS", query_BTKGH, read(key_LBSKH, start), preferred_element_type=jnp.float32
        )
        scores_BNTs = scores_BKGTs.reshape(B, N, T, block)
        if softcap:
            scores_BNTs = softcap * jnp.tanh(scores_BNTs / softcap)
        if bias_BNTS is not None:
            scores_BNTs = scores_BNTs + jax.lax.dynamic_slice_in_dim(bias_BNTS, start, block, 3)
        slots_Bs = jax.lax.dynamic_slice_in_dim(sight.key_BS, start, block, 1)
        near = Sight(sight.query_BT, slots_Bs, causal=True)
        if slopes_N is not None:
            far_BTs = jnp.abs(near.distance()).astype(jnp.float32)
            scores_BNTs = scores_BNTs - slopes_N[None, :, None, None] * far_BTs[:, None]
        scores_BNTs = jnp.where(near.visible(window)[:, None], scores_BNTs, lowest)
        new_BNT = jnp.maximum(highest_BNT, jnp.max(scores_BNTs, axis=-1))
        weights_BNTs = jnp.exp(scores_BNTs - new_BNT[..., None])
        faded_BNT = jnp.exp(highest_BNT - new_BNT)
        weights_BKGTs = weights_BNTs.reshape(scores_BKGTs.shape).astype(computed)
        read_BKGTH = jnp.einsum(
            "BKGTS,BSKH->BKGTH", weights_BKGTs, read(value_LBSKH, start), preferred_element_type=jnp.float32
        )
        total_BNT = total_BNT * faded_BNT + jnp.sum(weights_BNTs, axis=-1)
        return new_BNT, total_BNT, output_BNTH * faded_BNT[..., None] + read_BKGTH.reshape(B, N, T, H)

    first, end = jnp.int32(0), jnp.minimum(jnp.max(sight.query_BT), S - 1) // block + 1
    if window is not None and not ring:
        oldest = jnp.maximum(jnp.min(sight.query_BT) - window + 1, 0) // block
        first = jnp.where(window > 0, jnp.minimum(oldest, end - 1), 0).astype(jnp.int32)
    highest_BNT, total_BNT = jnp.full((B, N, T), lowest), jnp.zeros((B, N, T))
    if sinks_N is not None:  # They take part in the softmax from the first.
        highest_BNT = jnp.broadcast_to(sinks_N.astype(jnp.float32)[None, :, None], (B, N, T))
        total_BNT = jnp.ones((B, N, T))
    state = jax.lax.fori_loop(first, end.astype(jnp.int32), add, (highest_BNT, total_BNT, jnp.zeros((B, N, T, H))))
    _, total_BNT, output_BNTH = state
    return (output_BNTH / total_BNT[..., None]).swapaxes(1, 2).astype(query_BTNH.dtype)
