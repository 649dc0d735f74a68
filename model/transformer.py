"""What all Transformers here are made of: embeddings, blocks of attention and feed-forward, and the stack of blocks.

Shapes: B batch, T length, S key length, D model width, V vocabulary, L layers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from configs.derived import has_final_norm, layer_windows, logit_scale, max_length
from configs.schema import Config
from model import packed, positions
from model.apart import Apart
from model.attention import Attention, CrossAttention, Places, Ring
from model.experts import LOSSES, Experts
from model.latent import LatentAttention
from model.layers import Dropout, FeedForward, Linear, Norm
from model.lens.places import EDITS, INTERMEDIATES, tap
from model.linear import DeltaAttention, LinearAttention
from model.masks import Sight
from model.pipeline import Pipeline
from model.remat import LAYER_INPUT, rematerialized
from model.sharding import constrain, ways

ATTENTION: dict[str, Any] = {
    "mha": Attention,
    "gqa": Attention,
    "mqa": Attention,
    "latent": LatentAttention,
    "linear": LinearAttention,
    "delta": DeltaAttention,
}


@flax.struct.dataclass
class Layer:
    """What a layer is told of itself; of all layers, arrays [L]."""

    number: Any  # int32
    window: Any  # How far it sees, int32; 0 is everything.


class Block(nn.Module):
    """One layer: read from other tokens, then think; each adds to the residual stream."""

    config: Config
    deterministic: bool
    translates: bool = False  # Whether it reads from an encoded source in between.

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, layer: Layer, places: Places, memory_BSD: jax.Array | None
    ) -> tuple[jax.Array, None]:
        """Map the residual stream [B,T,D] to itself, in the form that `nn.scan` takes (carry, no output)."""
        config = self.config
        places = dataclasses.replace(places, layer=layer.number)
        x_BTD = tap(self, "residual/before", checkpoint_name(x_BTD, LAYER_INPUT))
        attention = ATTENTION[config.model.attention](config, name="attention")
        x_BTD = self.add(x_BTD, "attention", lambda y_BTD: attention(y_BTD, places, layer.window), places)
        if self.translates:
            cross = CrossAttention(config, name="cross_attention")
            x_BTD = self.add(x_BTD, "cross_attention", lambda y_BTD: cross(y_BTD, places, memory_BSD), places)
        x_BTD = tap(self, "residual/middle", x_BTD)
        if config.model.num_experts:
            experts = Experts(config, name="feed_forward")
            x_BTD = self.add(x_BTD, "feed_forward", lambda y_BTD: experts(y_BTD, places.real_BT), places)
        elif config.model.feed_forward:
            x_BTD = self.add(x_BTD, "feed_forward", FeedForward(config, name="feed_forward"), places)
        x_BTD = tap(self, "residual/after", x_BTD)
        return x_BTD, None

    def add(self, x_BTD: jax.Array, name: str, layer: Callable[[jax.Array], jax.Array], places: Places) -> jax.Array:
        """x + layer(x), with norms where `model.norm_position` puts them."""
        model = self.config.model
        y_BTD = x_BTD
        if model.norm_position in ("pre", "both"):
            y_BTD = Norm(self.config, model.norm, name=f"{name}_norm")(y_BTD)
        y_BTD = layer(constrain(y_BTD, "batch", "length", "width"))
        if model.norm_position in ("both", "output"):
            y_BTD = Norm(self.config, model.norm, name=f"{name}_post_norm")(y_BTD)
        y_BTD = tap(self, f"added/{name}", y_BTD)
        x_BTD = x_BTD + Dropout(model.dropout, self.deterministic)(y_BTD, places.rows_B)
        if model.norm_position == "post":
            x_BTD = Norm(self.config, model.norm, name=f"{name}_norm")(x_BTD)
        return constrain(x_BTD, "batch", "residual", "width")


class Embedding(nn.Module):
    """A learned vector for each of `rows` indices."""

    config: Config
    rows: int
    axis: str = "vocabulary"  # Logical name of the rows.

    def setup(self) -> None:
        """Declare the table [rows, D], unless it is packed."""
        if self.has_variable("params", packed.MATRIX):
            return
        model = self.config.model
        # Scaled up by sqrt(D), vectors start with a size of 1.
        spread = 1 / math.sqrt(model.width) if model.scale_embeddings and self.axis == "vocabulary" else 0.02
        self.embedding = self.param(
            "embedding", nn.initializers.normal(spread), (self.rows, model.width), jnp.dtype(model.param_dtype)
        )

    def __call__(self, index_BT: jax.Array) -> jax.Array:
        """The vectors [B,T,D] of the indices."""
        if self.has_variable("params", packed.MATRIX):
            return packed.rows_of(*self.packed(), index_BT, self.config.model.dtype)
        # Gather the width first: from a table whose width is spread, XLA would make the whole result on each device.
        table_VD = constrain(self.embedding.astype(self.config.model.dtype), self.axis, "width")
        return constrain(table_VD[index_BT], "rows", "length", "width")

    def scores(self, x_BTD: jax.Array) -> jax.Array:
        """How well each vector matches each of the table's, [B,T,rows] float32: the output layer, if tied."""
        if self.has_variable("params", packed.MATRIX):
            return packed.product(x_BTD, *self.packed())
        table_VD = self.embedding.astype(self.config.model.dtype)
        return jnp.einsum("BTD,VD->BTV", x_BTD, table_VD, preferred_element_type=jnp.float32)

    def packed(self) -> tuple[jax.Array, jax.Array | None]:
        """The table in fewer bytes, and what its rows are multiplied by, [rows], if anything."""
        of_self = self.variables["params"]
        return of_self[packed.MATRIX], of_self.get(packed.SCALE)


# The functions below declare modules: they are to be called in a compact method.


def embed(
    config: Config, tokens: Embedding, tokens_BT: jax.Array, positions_BT: jax.Array, name: str = "position"
) -> jax.Array:
    """What enters the first layer, [B,T,D]: a vector for each token and, by some schemes, one for its place."""
    model = config.model
    x_BTD = tokens(tokens_BT)
    if model.scale_embeddings:
        x_BTD = x_BTD * jnp.asarray(math.sqrt(model.width), x_BTD.dtype)
    if model.position == "learned":
        x_BTD = x_BTD + Embedding(config, max_length(config), "positions", name=name)(positions_BT)
    elif model.position == "sinusoidal":
        x_BTD = x_BTD + positions.sinusoids(positions_BT, model.width).astype(x_BTD.dtype)
    return x_BTD


def through_layers(
    config: Config,
    x_BTD: jax.Array,
    places: Places,
    *,
    num_layers: int,
    deterministic: bool,
    translates: bool = False,
    memory_BSD: jax.Array | None = None,
) -> jax.Array:
    """The residual stream after all blocks and the final norm, [B,T,D].

    The blocks are one module, `layers`, with parameters stacked on a leading axis, looped over or unrolled.
    """
    model = config.model
    x_BTD = constrain(Dropout(model.dropout, deterministic)(x_BTD, places.rows_B), "rows", "residual", "width")
    block = rematerialized(Block, config)
    stack = nn.scan(
        block,
        variable_axes={"params": 0, INTERMEDIATES: 0, EDITS: 0, LOSSES: 0},
        variable_carry="cache",
        split_rngs={"params": True, "dropout": True},
        in_axes=cast(Any, (0, nn.broadcast, nn.broadcast)),  # Flax annotates int, and takes one for each argument.
        length=num_layers,
        unroll=num_layers if model.layers == "unroll" else 1,
    )
    # The scan makes jax scalars of each.
    layers_L = Layer(*np.array([range(num_layers), layer_windows(config, num_layers)], np.int32))
    unbound = block(config, deterministic, translates, parent=None)
    stacked = stack(config, deterministic, translates, parent=None)
    if ways("layers") == 1:
        layers = Apart(stacked, unbound, num_layers, name="layers")
    else:
        layers = Pipeline(config, stacked, unbound, num_layers, name="layers")
    x_BTD, _ = layers(x_BTD, layers_L, places, memory_BSD)
    if has_final_norm(config):
        x_BTD = Norm(config, model.norm, name="final_norm")(x_BTD)
    return constrain(x_BTD, "rows", "length", "width")


def to_logits(config: Config, tokens: Embedding, x_BTD: jax.Array) -> jax.Array:
    """A logit for every word, [B,T,V] float32."""
    return softcap(config, to_scores(config, tokens, x_BTD))


def to_scores(config: Config, tokens: Embedding, x_BTD: jax.Array) -> jax.Array:
    """The logits before `softcap`: what is linear in the parameters, [B,T,V] float32."""
    model, V = config.model, config.tokenizer.vocab_size
    if model.tied_embeddings:
        scores_BTV = tokens.scores(x_BTD)
    else:
        output = Linear(config, (model.width,), (V,), bias=False, exact=True, name="output")
        scores_BTV = output(x_BTD).astype(jnp.float32)
    if logit_scale(config) != 1:
        scores_BTV = scores_BTV * logit_scale(config)
    if model.output_bias:
        scores_BTV = scores_BTV + OutputBias(config, name="output_bias")()[None, None]
    return constrain(scores_BTV, "rows", "length", "vocabulary")


def softcap(config: Config, scores_BTV: jax.Array) -> jax.Array:
    """The logits of these scores, [B,T,V] float32."""
    cap = config.model.logit_softcap
    return cap * jnp.tanh(scores_BTV / cap) if cap else scores_BTV


class Head(nn.Module):
    """The output layer by itself, with the names that its parameters have in a whole network."""

    config: Config

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Scores [B,T,V] float32 of what a network called with `head=False` returned; `softcap` makes them logits."""
        tokens = Embedding(self.config, self.config.tokenizer.vocab_size, name="embedding")
        return to_scores(self.config, tokens, x_BTD)


def head_logits(config: Config, params: Any, x_BTD: jax.Array) -> jax.Array:
    """Logits [B,T,V] float32 of what a network with these parameters returned with `head=False`."""
    scores_BTV: Any = Head(config).apply({"params": params}, x_BTD)
    return softcap(config, scores_BTV)


class OutputBias(nn.Module):
    """A number per word that is added to its logit, whichever the output layer is."""

    config: Config

    @nn.compact
    def __call__(self) -> jax.Array:
        """The biases, [V] float32."""
        model = self.config.model
        shape = (self.config.tokenizer.vocab_size,)
        return self.param("bias", nn.initializers.zeros, shape, jnp.dtype(model.param_dtype)).astype(jnp.float32)


class RelativeBias(nn.Module):
    """A learned bias per head for each range of distances, shared by all layers (Raffel et al. 2020, section 2.1)."""

    config: Config
    both_ways: bool

    @nn.compact
    def __call__(self, distance_BTS: jax.Array) -> jax.Array:
        """The biases [B,N,T,S] float32 of the distances."""
        model = self.config.model
        table_RN = self.param(
            "embedding", nn.initializers.normal(0.02), (model.relative_buckets, model.num_heads),
            jnp.dtype(model.param_dtype),
        )  # fmt: skip
        buckets_BTS = positions.relative_buckets(
            distance_BTS, self.both_ways, model.relative_buckets, model.relative_distance
        )
        return jnp.moveaxis(table_RN.astype(jnp.float32)[buckets_BTS], -1, 1)


def begins_and_real(positions_BT: jax.Array, segments_BT: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Where a text begins, and what is no padding, each [B,T] bool; without segments all is real."""
    real_BT = jnp.ones(positions_BT.shape, bool) if segments_BT is None else segments_BT != 0
    return (positions_BT == 0) & real_BT, real_BT


def find_places(
    config: Config,
    positions_BT: jax.Array,
    segments_BT: jax.Array | None,
    rows_B: jax.Array,
    *,
    causal: bool = True,
    slots: int = 0,
    ring: int = 0,
    source_segments_BS: jax.Array | None = None,
) -> Places:
    """Distances and visibility between the tokens and all keys: those of this call, or the `slots` of a cache.

    With a `ring` of so many slots, layers with a window look into that.
    """
    model, shape = config.model, positions_BT.shape
    begins_BT, real_BT = begins_and_real(positions_BT, segments_BT)
    segments_BT = jnp.ones(shape, jnp.int32) if segments_BT is None else segments_BT
    if slots:
        keys_BS = jnp.broadcast_to(jnp.arange(slots), (shape[0], slots))
        sight = Sight(positions_BT, keys_BS, causal=True)
    else:
        sight = Sight(positions_BT, positions_BT, segments_BT, segments_BT, causal)
    rotation = local_rotation = bias_BNTS = slopes_N = source_sight = None
    if model.position == "rope":
        rotation = positions.rope_rotation(config, positions_BT, real_BT=real_BT)
        local_rotation = positions.rope_rotation(config, positions_BT, local=True) if model.rope_local_base else None
    elif model.position == "alibi":
        slopes_N = jnp.asarray(positions.alibi_slopes(model.num_heads), jnp.float32)
    elif model.position == "relative":
        bias_BNTS = RelativeBias(config, not causal, name="relative")(sight.distance())
    if source_segments_BS is not None:
        source_sight = Sight(positions_BT, jnp.zeros_like(source_segments_BS), segments_BT, source_segments_BS)
    places = Places(
        slot_BT=jnp.where(real_BT, positions_BT, slots),
        begins_BT=begins_BT,
        real_BT=real_BT,
        rows_B=rows_B,
        sight=sight,
        rotation=rotation,
        local_rotation=local_rotation,
        bias_BNTS=bias_BNTS,
        slopes_N=slopes_N,
        source_sight=source_sight,
    )
    if not ring:
        return places
    of_ring = find_in_ring(config, positions_BT, real_BT, ring)
    return dataclasses.replace(places, ring=of_ring) if slots else places.of_ring(of_ring)


def find_in_ring(config: Config, positions_BT: jax.Array, real_BT: jax.Array, slots: int) -> Ring:
    """Where tokens stand in a ring, and what it holds: in slot s the newest token whose position is s modulo `slots`.

    Raises:
      ValueError: so many tokens at once that the first would not see its whole window any more.
    """
    T, window = positions_BT.shape[1], config.model.window
    if slots - window + 1 < T:
        raise ValueError(
            f"A ring of {slots} slots for a window of {window} takes {slots - window + 1} tokens, not {T}."
        )
    newest_B1 = jnp.max(jnp.where(real_BT, positions_BT, -1), axis=1, keepdims=True)
    keys_BS = newest_B1 - (newest_B1 - jnp.arange(slots, dtype=jnp.int32)[None]) % slots
    keys_BS = jnp.where(keys_BS < 0, jnp.iinfo(jnp.int32).max // 2, keys_BS)  # Empty: behind every query.
    return Ring(jnp.where(real_BT, positions_BT % slots, slots), Sight(positions_BT, keys_BS, causal=True))


def or_default(
    tokens_BT: jax.Array, positions_BT: jax.Array | None, rows_B: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Positions [B,T] and row numbers [B], where not given: from 0."""
    if positions_BT is None:
        positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape)
    if rows_B is None:
        rows_B = jnp.arange(tokens_BT.shape[0], dtype=jnp.int32)
    return positions_BT, rows_B
