"""What a network that translates reads first.

Shapes: B batch, S source length.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Source:
    """Rows of source text; each may hold several sentences, one segment each."""

    tokens_BS: jax.Array  # int32 token ids.
    positions_BS: jax.Array  # Place of each token in its sentence, int32.
    segments_BS: jax.Array  # Which sentence each token belongs to, from 1; 0 is padding. int32.

    @staticmethod
    def of(tokens_BS: jax.Array, lengths_B: jax.Array | None = None) -> Source:
        """One sentence per row, its first `lengths_B` tokens (by default all)."""
        B, S = tokens_BS.shape
        places_BS = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (B, S))
        lengths_B = jnp.full((B,), S, jnp.int32) if lengths_B is None else lengths_B
        segments_BS = (places_BS < lengths_B[:, None]).astype(jnp.int32)
        return Source(tokens_BS, places_BS * segments_BS, segments_BS)
