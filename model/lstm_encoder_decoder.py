"""Translation with recurrence and attention, as it was when attention was new.

An LSTM reads the source in both directions; another one writes, and looks back at what the first one made of every
source token (Bahdanau et al. 2015, Luong et al. 2015).

Shapes: B batch, S source length, T target length, D model width, V vocabulary, L layers.
"""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from configs.derived import encoder_layers
from configs.schema import Config
from model import masks
from model.kernels.dense import softmax
from model.layers import Dropout, Linear
from model.lens.places import tap
from model.lstm import Layer, Recurrence, State, stacked
from model.remat import LAYER_INPUT
from model.source import Source
from model.transformer import Embedding, begins_and_real, embed, to_logits
from model.translator import Translator


@flax.struct.dataclass
class Memory:
    """An encoded source."""

    values_BSD: jax.Array  # Hidden states of the top layer, both directions side by side.
    cells_LBSD: jax.Array  # States of each of the encoder's layers.
    hidden_LBSD: jax.Array
    first_BS: jax.Array  # True for the first token of each sentence, and for the last.
    last_BS: jax.Array


class BothWays(nn.Module):
    """One layer of recurrence in both directions, each of half the width (Schuster & Paliwal 1997)."""

    config: Config
    deterministic: bool

    @nn.compact
    def __call__(
        self, x_BSD: jax.Array, _: None, ends: tuple[jax.Array, jax.Array], real_BS: jax.Array, rows_B: jax.Array
    ) -> tuple[jax.Array, State]:
        """The hidden states [B,S,D] after dropout, in the form that `nn.scan` takes; and cells and hidden states."""
        model, half = self.config.model, self.config.model.width // 2
        x_BSD = checkpoint_name(x_BSD, LAYER_INPUT)
        forward = Recurrence(self.config, half, name="forward")(x_BSD, ends[0], real_BS)
        backward = Recurrence(self.config, half, reverse=True, name="backward")(x_BSD, ends[1], real_BS)
        cells_BSD, hidden_BSD = (jnp.concatenate(pair, axis=-1) for pair in zip(forward, backward, strict=True))
        hidden_BSD = tap(self, "residual/after", hidden_BSD)
        return Dropout(model.dropout, self.deterministic)(hidden_BSD, rows_B), (cells_BSD, hidden_BSD)


class Encoder(nn.Module):
    """What a sentence says, a vector for each of its tokens; every layer reads it in both directions."""

    config: Config

    @nn.compact
    def __call__(self, tokens: Embedding, source: Source, rows_B: jax.Array, deterministic: bool) -> Memory:
        """The encoded source; `tokens` is the table that it shares with the decoder."""
        config = self.config
        first_BS, real_BS = begins_and_real(source.positions_BS, source.segments_BS)
        following_BS = jnp.pad(source.segments_BS[:, 1:], ((0, 0), (0, 1)))
        last_BS = real_BS & (source.segments_BS != following_BS)
        x_BSD = tap(self, "embedded", embed(config, tokens, source.tokens_BS, source.positions_BS))
        x_BSD = Dropout(config.model.dropout, deterministic)(x_BSD, rows_B)
        layers = stacked(BothWays, config, encoder_layers(config))(config, deterministic, name="layers")
        values_BSD, (cells_LBSD, hidden_LBSD) = layers(x_BSD, None, (first_BS, last_BS), real_BS, rows_B)
        return Memory(values_BSD, cells_LBSD, hidden_LBSD, first_BS, last_BS)


class Alignment(nn.Module):
    """Attention of the decoder's states over the source.

    Both papers' ways to compare are here, between the state that has read the current token and each source token, and
    what is found joins the output alone: Luong et al. without input feeding. (Bahdanau et al. compare the state before
    the token, and feed what is found to the recurrence.) So all target positions are computed at once.
    """

    config: Config

    @nn.compact
    def __call__(
        self, state_BTD: jax.Array, values_BSD: jax.Array | None, visible_BTS: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """tanh(W[found; state]) [B,T,D] and the weights [B,T,S] float32; without values, those of the cache."""
        config, D = self.config, self.config.model.width
        key_BSD, values_BSD = self.remember(values_BSD)
        if config.model.alignment == "luong":  # Section 3.1, "general".
            scores_BTS = jnp.einsum("BTD,BSD->BTS", state_BTD, key_BSD, preferred_element_type=jnp.float32)
        else:  # Bahdanau et al., appendix A.1.2.
            query_BTD = Linear(config, (D,), (D,), name="state")(state_BTD)
            bent_BTSD = jnp.tanh(query_BTD[:, :, None] + key_BSD[:, None])
            scores_BTS = Linear(config, (D,), (1,), bias=False, name="score")(bent_BTSD)[..., 0].astype(jnp.float32)
        weights_BTS = softmax(scores_BTS[:, None], visible_BTS[:, None])[:, 0]
        found_BTD = jnp.einsum("BTS,BSD->BTD", weights_BTS.astype(values_BSD.dtype), values_BSD)
        both_BTE = jnp.concatenate([found_BTD, state_BTD], axis=-1)
        return jnp.tanh(Linear(config, (2 * D,), (D,), name="combine")(both_BTE)), weights_BTS

    def remember(self, values_BSD: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Keys and values, each [B,S,D]: of the source, which is kept in the cache if there is one, or the cache's."""
        if values_BSD is None:
            return self.get_variable("cache", "key"), self.get_variable("cache", "value")
        D = self.config.model.width
        key_BSD = Linear(self.config, (D,), (D,), name="source")(values_BSD)
        if self.has_variable("cache", "key"):
            self.put_variable("cache", "key", key_BSD)
            self.put_variable("cache", "value", values_BSD)
        return key_BSD, values_BSD


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
        memory: Memory | None,
        source_segments_BS: jax.Array,
        deterministic: bool,
        head: bool,
    ) -> jax.Array:
        """Logits [B,T,V] float32."""
        config, model = self.config, self.config.model
        begins_BT, real_BT = begins_and_real(positions_BT, segments_BT)
        segments_BT = jnp.ones(positions_BT.shape, jnp.int32) if segments_BT is None else segments_BT
        visible_BTS = masks.same_segment(segments_BT, source_segments_BS)
        x_BTD = tap(self, "embedded", embed(config, tokens, tokens_BT, positions_BT))
        x_BTD = Dropout(model.dropout, deterministic)(x_BTD, rows_B)
        start = None if memory is None else starts(memory, begins_BT[:, :, None] & visible_BTS, model.num_layers)
        layers = stacked(Layer, config, model.num_layers)(config, deterministic, name="layers")
        x_BTD, _ = layers(x_BTD, start, begins_BT, real_BT, rows_B)
        values_BSD = None if memory is None else memory.values_BSD
        x_BTD, weights_BTS = Alignment(config, name="alignment")(x_BTD, values_BSD, visible_BTS)
        # One layer with one head, under the name that a Transformer's have.
        tap(self, "layers/cross_attention/weights", weights_BTS[None, :, None])
        x_BTD = Dropout(model.dropout, deterministic)(x_BTD, rows_B)
        x_BTD = tap(self, "final", x_BTD)
        return to_logits(config, tokens, x_BTD) if head else x_BTD


def starts(memory: Memory, source_of_BTS: jax.Array, num_layers: int) -> State:
    """The decoder's state before the first token of each text, [L,B,T,D] (zeros elsewhere): where the encoder ended.

    A layer takes the state of the encoder's layer at its height (counted from the top, and the lowest for all below):
    after the last token from the direction that reads forward, after the first one from the other.

    Args:
      memory: the encoded source.
      source_of_BTS: True from the first token of a text to the source that it translates.
      num_layers: of the decoder.
    """
    half = memory.values_BSD.shape[-1] // 2
    heights = [max(0, layer + memory.cells_LBSD.shape[0] - num_layers) for layer in range(num_layers)]

    def pick(states_LBSD: jax.Array) -> jax.Array:
        ends = (memory.last_BS, states_LBSD[..., :half]), (memory.first_BS, states_LBSD[..., half:])
        # A product with a matrix of 0 and 1: its gradient is one too, where that of an indexing is slow.
        parts = [
            jnp.einsum("BTS,LBSH->LBTH", (source_of_BTS & end_BS[:, None]).astype(x.dtype), x) for end_BS, x in ends
        ]
        return jnp.concatenate(parts, axis=-1)[jnp.array(heights)]

    return pick(memory.cells_LBSD), pick(memory.hidden_LBSD)


class LSTMEncoderDecoder(Translator):
    """LSTMs that translate."""

    ENCODER: ClassVar[Any] = Encoder
    DECODER: ClassVar[Any] = _Decoder
