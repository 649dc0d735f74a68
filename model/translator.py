"""A network in two parts: one encodes a source, the other writes its translation.

Shapes: B batch, S source length, T target length, V vocabulary.
"""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax

from configs.schema import Config
from model.source import Source
from model.transformer import Embedding, or_default


class Translator(nn.Module):
    """From a source and the translation so far, a logit for every token that could come next.

    One embedding serves source, target and, if tied, output (Vaswani et al. 2017, section 3.4). A subclass names the
    modules that do the work; what one hands to the other, the encoded source, is their own affair.
    """

    config: Config
    ENCODER: ClassVar[Any]  # Called with (embedding, source, rows_B, deterministic), returns the encoded source.
    DECODER: ClassVar[Any]  # Called with the embedding and the arguments of `decode` in their order.

    def setup(self) -> None:
        """Declare the parts; the decoder's parameters have the names that they have in a network without encoder."""
        self.embedding = Embedding(self.config, self.config.tokenizer.vocab_size)
        self.encoder = self.ENCODER(self.config)
        self.decoder = self.DECODER(self.config)
        nn.share_scope(self, self.decoder)

    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        rows_B: jax.Array | None = None,
        source: Source | None = None,
        *,
        deterministic: bool = True,
        head: bool = True,
    ) -> jax.Array:
        """Logits [B,T,V] float32: `encode`, then `decode`. With a cache, a source is needed in the first call only."""
        memory = None if source is None else self.encode(source, rows_B, deterministic=deterministic)
        segments_BS = None if source is None else source.segments_BS
        return self.decode(
            tokens_BT, positions_BT, segments_BT, rows_B, memory, segments_BS, deterministic=deterministic, head=head
        )

    def encode(self, source: Source, rows_B: jax.Array | None = None, *, deterministic: bool = True) -> Any:
        """The encoded source."""
        _, rows_B = or_default(source.tokens_BS, source.positions_BS, rows_B)
        return self.encoder(self.embedding, source, rows_B, deterministic)

    def decode(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        rows_B: jax.Array | None = None,
        memory: Any = None,
        source_segments_BS: jax.Array | None = None,
        *,
        deterministic: bool = True,
        head: bool = True,
    ) -> jax.Array:
        """Logits [B,T,V] float32 of what follows each target token.

        Args:
          tokens_BT: int32 token ids of the translation so far.
          positions_BT, segments_BT, rows_B: as of `Decoder`; segment k translates the source's segment k.
          memory: what `encode` returned; None takes the cache's.
          source_segments_BS: the source's segments; None takes the cache's.
          deterministic: False drops activations, with the random stream `dropout`.
          head: as of `Decoder`.

        Raises:
          ValueError: neither a source nor a cache that has one.
        """
        cached = self.has_variable("cache", "source_segments")
        if memory is None and not cached:
            raise ValueError("An encoder-decoder needs a source, in its first call with a cache at least.")
        if cached:
            if source_segments_BS is not None:
                self.put_variable("cache", "source_segments", source_segments_BS)
            source_segments_BS = self.get_variable("cache", "source_segments")
        if source_segments_BS is None:
            raise ValueError("An encoded source needs its segments.")
        positions_BT, rows_B = or_default(tokens_BT, positions_BT, rows_B)
        return self.decoder(
            self.embedding,
            tokens_BT,
            positions_BT,
            segments_BT,
            rows_B,
            memory,
            source_segments_BS,
            deterministic,
            head,
        )
