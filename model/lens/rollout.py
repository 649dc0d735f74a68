"""Attention rollout: how much of each input a vector holds, if every layer only mixes what it reads."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rollout(weights_LBNTS: jax.Array) -> jax.Array:
    """The share of each input token in what stands at each place after the last layer, [B,T,S] float32.

    Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3: heads are averaged, the residual
    connection counts as much as they do, and the layers are multiplied. It knows nothing of what the values are: a head
    that reads much may write little.

    Args:
      weights_LBNTS: the self-attention weights of all layers, as recorded; T = S.

    Returns:
      Shares whose rows sum to 1.
    """
    mean_LBTS = jnp.mean(weights_LBNTS.astype(jnp.float32), axis=2)
    identity_TS = jnp.eye(mean_LBTS.shape[-1], dtype=jnp.float32)
    mixed_LBTS = 0.5 * mean_LBTS + 0.5 * identity_TS[None, None]
    mixed_LBTS = mixed_LBTS / jnp.sum(mixed_LBTS, axis=-1, keepdims=True)

    def through(shares_BTS: jax.Array, mixed_BTS: jax.Array) -> tuple[jax.Array, None]:
        return jnp.einsum("BTR,BRS->BTS", mixed_BTS, shares_BTS), None

    return jax.lax.scan(through, mixed_LBTS[0], mixed_LBTS[1:])[0]
