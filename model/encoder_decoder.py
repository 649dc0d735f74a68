"""The Transformer of the 2017 paper: an encoder reads a sentence, a decoder writes its translation.

Shapes: B batch, S source length, T target length, D model width, V vocabulary.
"""

from __future__ import annotations

import flax.linen as nn
import jax

from configs.convert import encoder_layers
from configs.schema import Config
from model.decoder import cache_slots
from model.lens.places import tap
from model.source import Source
from model.transformer import Embedding, embed, find_places, or_default, through_layers, to_logits


class Encoder(nn.Module):
    """What a sentence says, a vector for each of its tokens."""

    config: Config

    @nn.compact
    def __call__(self, tokens: Embedding, source: Source, rows_B: jax.Array, deterministic: bool) -> jax.Array:
        """The encoded source [B,S,D]; `tokens` is the table that it shares with the decoder."""
        config = self.config
        places = find_places(config, source.positions_BS, source.segments_BS, rows_B, causal=False)
        x_BSD = embed(config, tokens, source.tokens_BS, source.positions_BS)
        return through_layers(config, x_BSD, places, num_layers=encoder_layers(config), deterministic=deterministic)


class _Decoder(nn.Module):
    """The decoder's own layers."""

    config: Config

    @nn.compact
    def __call__(
        self,
        tokens: Embedding,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segments_BT: jax.Array | None,
        rows_B: jax.Array,
        memory_BSD: jax.Array | None,
        source_segments_BS: jax.Array,
        deterministic: bool,
    ) -> jax.Array:
        """Logits [B,T,V] float32."""
        config = self.config
        places = find_places(
            config, positions_BT, segments_BT, rows_B,
            slots=cache_slots(self), source_segments_BS=source_segments_BS,
        )  # fmt: skip
        x_BTD = embed(config, tokens, tokens_BT, positions_BT)
        x_BTD = through_layers(
            config, x_BTD, places,
            num_layers=config.model.num_layers, deterministic=deterministic, translates=True, memory_BSD=memory_BSD,
        )  # fmt: skip
        tap(self, "final", x_BTD)
        return to_logits(config, tokens, x_BTD)


class EncoderDecoder(nn.Module):
    """A translator: from a source and the translation so far, a logit for every token that could come next.

    One embedding serves source, target and, if tied, output (Vaswani et al. 2017, section 3.4).
    """

    config: Config

    def setup(self) -> None:
        """Declare the parts; the decoder's parameters have the names that they have in a network without encoder."""
        self.embedding = Embedding(self.config, self.config.tokenizer.vocab_size)
        self.encoder = Encoder(self.config)
        self.decoder = _Decoder(self.config)
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
    ) -> jax.Array:
        """Logits [B,T,V] float32: `encode`, then `decode`. With a cache, a source is needed in the first call only."""
        memory_BSD = None if source is None else self.encode(source, rows_B, deterministic=deterministic)
        segments_BS = None if source is None else source.segments_BS
        return self.decode(
            tokens_BT, positions_BT, segments_BT, rows_B, memory_BSD, segments_BS, deterministic=deterministic
        )

    def encode(self, source: Source, rows_B: jax.Array | None = None, *, deterministic: bool = True) -> jax.Array:
        """The encoded source [B,S,D]."""
        _, rows_B = or_default(source.tokens_BS, source.positions_BS, rows_B)
        return self.encoder(self.embedding, source, rows_B, deterministic)

    def decode(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        rows_B: jax.Array | None = None,
        memory_BSD: jax.Array | None = None,
        source_segments_BS: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Logits [B,T,V] float32 of what follows each target token.

        Args:
          tokens_BT: int32 token ids of the translation so far.
          positions_BT, segments_BT, rows_B: as of `Decoder`; segment k translates the source's segment k.
          memory_BSD: what `encode` returned; None takes the cache's.
          source_segments_BS: the source's segments; None takes the cache's.
          deterministic: False drops activations, with the random stream `dropout`.

        Raises:
          ValueError: neither a source nor a cache that has one.
        """
        if memory_BSD is None and not self.has_variable("cache", "source_segments"):
            raise ValueError("An encoder-decoder needs a source, in its first call with a cache at least.")
        if self.has_variable("cache", "source_segments"):
            if source_segments_BS is not None:
                self.put_variable("cache", "source_segments", source_segments_BS)
            source_segments_BS = self.get_variable("cache", "source_segments")
        if source_segments_BS is None:
            raise ValueError("An encoded source needs its segments.")
        positions_BT, rows_B = or_default(tokens_BT, positions_BT, rows_B)
        return self.decoder(
            self.embedding, tokens_BT, positions_BT, segments_BT, rows_B, memory_BSD, source_segments_BS, deterministic
        )
