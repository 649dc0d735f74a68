"""What kind of relation each head looks for, as a number: where its attention goes.

Shapes: L layers, B batch, N heads, T query length, S the same tokens as keys.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.jit
def head_scores(weights_LBNTS: jax.Array, tokens_BT: jax.Array) -> dict[str, jax.Array]:
    """Scores of each head, by name, each [L,N] float32: means over the batch and the queries that they are defined for.

    `previous` is the weight on the token before (from the second token on). `duplicate` is the weight on all earlier
    copies of a token together, and `induction` that on the tokens right after them: if A B came before, A looks at B
    (Olsson et al. 2022, "In-context Learning and Induction Heads"); both from tokens that have such a copy, and NaN if
    none has. `sink` is the weight on the first token (Xiao et al. 2024), from the second on. `distance` is how many
    tokens away a head looks on average, and `entropy` how widely, in nats.

    Args:
      weights_LBNTS: self-attention weights as recorded, none below 0; they may have sinks, so that rows sum to less
        than 1.
      tokens_BT: the int32 tokens that were read.
    """
    weights_LBNTS = weights_LBNTS.astype(jnp.float32)
    T = tokens_BT.shape[1]
    behind_TS = jnp.arange(T)[:, None] - jnp.arange(T)[None, :]
    copy_BTS = (tokens_BT[:, :, None] == tokens_BT[:, None, :]) & (behind_TS > 0)[None]
    after_copy_BTS = jnp.pad(copy_BTS, ((0, 0), (0, 0), (1, 0)))[:, :, :-1]
    repeats_BT = jnp.any(copy_BTS, axis=-1)
    later_BT = jnp.broadcast_to(jnp.arange(T) > 0, tokens_BT.shape)
    total_LBNT = jnp.sum(weights_LBNTS, axis=-1)
    far_LBNT = jnp.einsum("LBNTS,TS->LBNT", weights_LBNTS, jnp.abs(behind_TS).astype(jnp.float32))

    def on(keys_BTS: jax.Array, queries_BT: jax.Array) -> jax.Array:
        return _mean(jnp.einsum("LBNTS,BTS->LBNT", weights_LBNTS, keys_BTS.astype(jnp.float32)), queries_BT)

    return {
        "previous": on(jnp.broadcast_to(behind_TS == 1, copy_BTS.shape), later_BT),
        "duplicate": on(copy_BTS, repeats_BT),
        "induction": on(after_copy_BTS, repeats_BT),
        "sink": _mean(weights_LBNTS[..., 0], later_BT),
        "distance": _mean(far_LBNT / jnp.maximum(total_LBNT, 1e-30), jnp.ones_like(later_BT)),
        "entropy": _mean(-jnp.sum(jax.scipy.special.xlogy(weights_LBNTS, weights_LBNTS), -1), jnp.ones_like(later_BT)),
    }


def _mean(values_LBNT: jax.Array, queries_BT: jax.Array) -> jax.Array:
    """Mean [L,N] over the queries where True."""
    counted_BT = queries_BT.astype(jnp.float32)
    return jnp.einsum("LBNT,BT->LN", values_LBNT, counted_BT) / jnp.sum(counted_BT)
