"""Attention of a causal model in chunks of queries, each with the keys up to its end: for a CPU.

A program on a CPU does what it is told, so the half of the scores that a causal mask hides costs as much as the other.
Four chunks leave out three eighths of it. Everything else is as in `dense`, gradient included, which is why the scores
of each chunk are kept for it; heads are put before tokens once, since each product of matrices wants them there.

Shapes: B batch, T length, N heads, K key/value heads, G query heads for each of them, H head width; t is the length of
a chunk and s that of the keys up to its end.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from model.kernels.dense import weights_of

CHUNKS = 4  # More would save little, and each is compiled for itself.


def chunked(
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    mask_BTT: jax.Array,
    bias_BNTT: jax.Array | None = None,
    *,
    scale: float,
    softcap: float = 0.0,
    sinks_N: jax.Array | None = None,
) -> jax.Array:
    """The output of `dense` without its weights, where a token sees none that stands behind it in the row.

    The mask and the bias are those of `dense`; of the mask only what lies below the diagonal, and up to a chunk above
    it, is read.
    """
    B, T, N, H = query_BTNH.shape
    K = key_BTKH.shape[2]
    query_BKGTH = (
        (query_BTNH * jnp.asarray(scale, query_BTNH.dtype)).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    )
    key_BKTH, value_BKTH = key_BTKH.swapaxes(1, 2), value_BTKH.swapaxes(1, 2)
    length, outputs = -(-T // CHUNKS), []
    for start in range(0, T, length):
        end = min(start + length, T)
        rows, seen = slice(start, end), slice(0, end)
        scores_BKGts = jnp.einsum(
            "BKGTH,BKSH->BKGTS", query_BKGTH[:, :, :, rows], key_BKTH[:, :, seen], preferred_element_type=jnp.float32
        )
        bias_BNts = None if bias_BNTT is None else bias_BNTT[:, :, rows, seen]
        weights_BNts, _ = weights_of(scores_BKGts, mask_BTT[:, rows, seen], bias_BNts, softcap, sinks_N)
        weights_BKGts = weights_BNts.reshape(scores_BKGts.shape).astype(value_BTKH.dtype)
        outputs.append(jnp.einsum("BKGTS,BKSH->BKGTH", weights_BKGts, value_BKTH[:, :, seen]))
    read_BKGTH = jnp.concatenate(outputs, axis=3)
    return read_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, value_BTKH.shape[-1])
