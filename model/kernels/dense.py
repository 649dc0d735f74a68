"""Attention with its weights written out: the definition that every other kernel must agree with.

Shapes: B batch, T query length, S key length, N heads, K key/value heads, G query heads for each of them, H head width.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def dense(
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    mask_BTS: jax.Array,
    bias_BNTS: jax.Array | None = None,
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks_N: jax.Array | None = None,
    look: Callable[[str, jax.Array], jax.Array] = lambda name, value: value,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """softmax(scale QK^T + bias)V over the visible keys, with N a multiple of K (head n uses key head n // (N/K)).

    Args:
      mask_BTS: True where a query may look; every row needs one True.
      bias_BNTS: added to the scores (its axes may be 1).
      scale: what QK^T is multiplied by; by default 1/sqrt(H).
      softcap: scores become softcap * tanh(score / softcap); 0 is off.
      sinks_N: a logit per head that takes part in the softmax and adds nothing to the sum (Xiao et al. 2024).
      look: a function of "scores" and of "weights" that returns what to go on with.

    Returns:
      output [B,T,N,H] in the dtype of the values; weights [B,N,T,S] float32, whose rows sum to 1 (less with sinks);
      scores [B,N,T,S] float32 as they enter the softmax, before the mask.
    """
    B, T, N, H = query_BTNH.shape
    K = key_BSKH.shape[2]
    query_BTKGH = (query_BTNH * (H**-0.5 if scale is None else scale)).reshape(B, T, K, N // K, H)
    scores_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", query_BTKGH, key_BSKH, preferred_element_type=jnp.float32)
    weights_BNTS, scores_BNTS = weights_of(scores_BKGTS, mask_BTS, bias_BNTS, softcap, sinks_N, look)
    weights_BKGTS = weights_BNTS.reshape(scores_BKGTS.shape).astype(value_BSKH.dtype)
    output_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS, value_BSKH)
    return output_BTKGH.reshape(B, T, N, value_BSKH.shape[-1]), weights_BNTS, scores_BNTS


def weights_of(
    scores_BKGTS: jax.Array,
    mask_BTS: jax.Array,
    bias_BNTS: jax.Array | None,
    softcap: float,
    sinks_N: jax.Array | None,
    look: Callable[[str, jax.Array], jax.Array] = lambda name, value: value,
) -> tuple[jax.Array, jax.Array]:
    """The weights and the scores that `dense` returns, from scale QK^T; the arguments are those of `dense`."""
    B, K, G, T, S = scores_BKGTS.shape
    scores_BNTS = scores_BKGTS.reshape(B, K * G, T, S)
    if softcap:
        scores_BNTS = softcap * jnp.tanh(scores_BNTS / softcap)
    if bias_BNTS is not None:
        scores_BNTS = scores_BNTS + bias_BNTS
    scores_BNTS = look("scores", scores_BNTS)
    return look("weights", softmax(scores_BNTS, mask_BTS[:, None], sinks_N)), scores_BNTS


def softmax(scores_BNTS: jax.Array, mask_B1TS: jax.Array, sinks_N: jax.Array | None = None) -> jax.Array:
    """Softmax over the visible keys in float32; a hidden key's weight is exactly 0."""
    lowest = jnp.finfo(jnp.float32).min  # Not -inf: a row without a visible key must not make a NaN in the gradient.
    visible_BNTS = jnp.where(mask_B1TS, scores_BNTS, lowest)
    highest_BNT1 = jax.lax.stop_gradient(jnp.max(visible_BNTS, axis=-1, keepdims=True))
    if sinks_N is None:
        exp_BNTS = jnp.exp(visible_BNTS - highest_BNT1)
        return exp_BNTS / jnp.sum(exp_BNTS, axis=-1, keepdims=True)
    sink_1N11 = sinks_N.astype(jnp.float32)[None, :, None, None]
    highest_BNT1 = jnp.maximum(highest_BNT1, jax.lax.stop_gradient(sink_1N11))
    exp_BNTS = jnp.exp(visible_BNTS - highest_BNT1)
    return exp_BNTS / (jnp.sum(exp_BNTS, axis=-1, keepdims=True) + jnp.exp(sink_1N11 - highest_BNT1))
