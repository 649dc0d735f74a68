"""The decoder-only Transformer: embed, L blocks of attention and feed-forward, a logit for every word.

Shapes: B batch, T length, S key length, D model width, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from configs.convert import layer_windows, max_length
from configs.schema import Config
from model import masks, positions
from model.attention import Attention, Places
from model.layers import Dropout, FeedForward, Linear, Norm
from model.lens.places import INTERMEDIATES, tap
from model.sharding import constrain

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Block(nn.Module):
    """One layer: read from other tokens, then think; each adds to the residual stream."""

    config: Config
    deterministic: bool

    @nn.compact
    def __call__(self, x_BTD: jax.Array, window: jax.Array, places: Places) -> tuple[jax.Array, None]:
        """Map the residual stream [B,T,D] to itself, in the form that `nn.scan` takes (carry, no output)."""
        tap(self, "residual/before", x_BTD)
        attention = Attention(self.config, name="attention")
        x_BTD = self.add(x_BTD, "attention", lambda y_BTD: attention(y_BTD, places, window), places)
        tap(self, "residual/middle", x_BTD)
        x_BTD = self.add(x_BTD, "feed_forward", FeedForward(self.config, name="feed_forward"), places)
        tap(self, "residual/after", x_BTD)
        return x_BTD, None

    def add(self, x_BTD: jax.Array, name: str, layer: Callable[[jax.Array], jax.Array], places: Places) -> jax.Array:
        """x + layer(x), with the norm before the layer, after the sum (2017), or on both ends of the layer."""
        model = self.config.model
        y_BTD = x_BTD
        if model.norm_position != "post":
            y_BTD = Norm(self.config, model.norm, name=f"{name}_norm")(y_BTD)
        y_BTD = layer(y_BTD)
        if model.norm_position == "both":
            y_BTD = Norm(self.config, model.norm, name=f"{name}_post_norm")(y_BTD)
        x_BTD = x_BTD + Dropout(model.dropout, self.deterministic)(y_BTD, places.rows_B)
        if model.norm_position == "post":
            x_BTD = Norm(self.config, model.norm, name=f"{name}_norm")(x_BTD)
        return constrain(x_BTD, "batch", "length", "width")


class Embedding(nn.Module):
    """A learned vector for each of `rows` indices."""

    config: Config
    rows: int
    axis: str = "vocabulary"  # Logical name of the rows.

    def setup(self) -> None:
        """Declare the table [rows, D]."""
        model = self.config.model
        self.embedding = self.param(
            "embedding", nn.initializers.normal(0.02), (self.rows, model.width), jnp.dtype(model.param_dtype)
        )

    def __call__(self, index_BT: jax.Array) -> jax.Array:
        """The vectors [B,T,D] of the indices."""
        # Gather the width first: from a table whose width is spread, XLA would make the whole result on each device.
        table_VD = constrain(self.embedding.astype(self.config.model.dtype), self.axis, "width")
        return constrain(table_VD[index_BT], "batch", "length", "width")

    def scores(self, x_BTD: jax.Array) -> jax.Array:
        """How well each vector matches each of the table's, [B,T,rows] float32: the output layer, if tied."""
        table_VD = self.embedding.astype(self.config.model.dtype)
        return jnp.einsum("BTD,VD->BTV", x_BTD, table_VD, preferred_element_type=jnp.float32)


class Decoder(nn.Module):
    """A language model: from the tokens so far, a logit for every token that could come next."""

    config: Config

    @nn.compact
    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        rows_B: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Logits [B,T,V] float32.

        Args:
          tokens_BT: int32 token ids.
          positions_BT: place of each token in its document, by default 0..T-1; with a `cache`, also its slot.
          segments_BT: which packed document each token belongs to; by default all are one. Not with a cache.
          rows_B: number of each row in the whole batch, by default 0..B-1; dropout differs between rows.
          deterministic: False drops activations, with the random stream `dropout`.
        """
        config, model = self.config, self.config.model
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        if rows_B is None:
            rows_B = jnp.arange(tokens_BT.shape[0], dtype=jnp.int32)
        places = self.places(positions_BT, segments_BT, rows_B)

        tokens = Embedding(config, config.tokenizer.vocab_size, name="embedding")
        x_BTD = tokens(tokens_BT)
        if model.position == "learned":
            x_BTD = x_BTD + Embedding(config, max_length(config), "positions", name="position")(positions_BT)
        elif model.position == "sinusoidal":
            x_BTD = x_BTD + positions.sinusoids(positions_BT, model.width).astype(x_BTD.dtype)
        x_BTD = Dropout(model.dropout, deterministic)(x_BTD, places.rows_B)

        x_BTD, _ = self.blocks(deterministic)(x_BTD, np.array(layer_windows(config), np.int32), places)
        if model.norm_position != "post":
            x_BTD = Norm(config, model.norm, name="final_norm")(x_BTD)
        tap(self, "final", x_BTD)

        if model.tied_embeddings:
            logits_BTV = tokens.scores(x_BTD)
        else:
            output = Linear(config, (model.width,), (config.tokenizer.vocab_size,), name="output")
            logits_BTV = output(x_BTD).astype(jnp.float32)
        if model.logit_softcap:
            logits_BTV = model.logit_softcap * jnp.tanh(logits_BTV / model.logit_softcap)
        return constrain(logits_BTV, "batch", "length", "vocabulary")

    def blocks(self, deterministic: bool) -> nn.Module:
        """All blocks as one module with parameters stacked on a leading layer axis, looped over or unrolled."""
        model = self.config.model
        block = Block
        if model.remat != "none":
            block = nn.remat(Block, policy=REMAT_POLICIES[model.remat], prevent_cse=model.layers == "unroll")
        stack = nn.scan(
            block,
            variable_axes={"params": 0, "cache": 0, INTERMEDIATES: 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=cast(Any, (0, nn.broadcast)),  # Flax annotates int, and takes one for each argument.
            length=model.num_layers,
            unroll=model.num_layers if model.layers == "unroll" else 1,
        )
        return stack(self.config, deterministic, name="layers")

    def places(self, positions_BT: jax.Array, segments_BT: jax.Array | None, rows_B: jax.Array) -> Places:
        """Distances and visibility between the tokens and all keys: those of this call, or the cache's slots."""
        keys_BS = positions_BT
        cache = self.variables.get("cache")
        if cache:
            slots = jax.tree.leaves(cache)[0].shape[2]
            keys_BS = jnp.broadcast_to(jnp.arange(slots), (positions_BT.shape[0], slots))
        distance_BTS = masks.distance(positions_BT, keys_BS)
        visible_BTS = masks.causal(distance_BTS)
        if segments_BT is not None:
            visible_BTS = visible_BTS & masks.same_segment(segments_BT, segments_BT)
        rotation = positions.rope_rotation(self.config, positions_BT) if self.config.model.position == "rope" else None
        return Places(positions_BT, distance_BTS, visible_BTS, rotation, rows_B)
