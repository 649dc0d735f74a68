"""The Transformer of the 2017 paper: an encoder reads a sentence, a decoder writes its translation.

Shapes: B batch, S source length, T target length, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax

from configs.derived import encoder_layers
from configs.schema import Config
from model.decoder import cache_slots
from model.lens.places import tap
from model.source import Source
from model.transformer import Embedding, embed, find_places, through_layers, to_logits
from model.translator import Translator


class Encoder(nn.Module):
    """What a sentence says, a vector for each of its tokens."""

    config: Config

    @nn.compact
    def __call__(self, tokens: Embedding, source: Source, rows_B: jax.Array, deterministic: bool) -> jax.Array:
        """The encoded source [B,S,D]; `tokens` is the table that it shares with the decoder."""
        config = self.config
        places = find_places(config, source.positions_BS, source.segments_BS, rows_B, causal=False)
        x_BSD = tap(self, "embedded", embed(config, tokens, source.tokens_BS, source.positions_BS))
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
        head: bool,
    ) -> jax.Array:
        """Logits [B,T,V] float32."""
        config = self.config
        places = find_places(
            config, positions_BT, segments_BT, rows_B,
            slots=cache_slots(self), source_segments_BS=source_segments_BS,
        )  # fmt: skip
        x_BTD = tap(self, "embedded", embed(config, tokens, tokens_BT, positions_BT))
        x_BTD = through_layers(
            config, x_BTD, places,
            num_layers=config.model.num_layers, deterministic=deterministic, translates=True, memory_BSD=memory_BSD,
        )  # fmt: skip
        x_BTD = tap(self, "final", x_BTD)
        return to_logits(config, tokens, x_BTD) if head else x_BTD


class EncoderDecoder(Translator):
    """The Transformer that translates."""

    ENCODER: ClassVar[Any] = Encoder
    DECODER: ClassVar[Any] = _Decoder
