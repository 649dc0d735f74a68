"""Knock-outs: what becomes of the prediction without a head or a layer, for each of them, in one compiled call.

Michel et al. 2019, "Are Sixteen Heads Really Better than One?", sections 2.3 and 3.1.

Shapes: L layers, N heads, B batch, T length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from configs.check import check_length
from configs.schema import Config, ConfigError
from model.lens.context import losses_of
from model.lens.places import (
    ADDED,
    ALL,
    HEADS,
    INTERMEDIATES,
    RESIDUAL,
    Asked,
    Edit,
    asking,
    nested,
    places_of,
)
from model.lens.rest import OnLayer, Rest, each_layer, encoded
from model.source import Source
from model.transformer import head_logits

TOKENS = 512  # That are computed at once, by default: some hundred MB of logits, with a large vocabulary.


def knock_out_heads(
    module: Any,
    params: Any,
    tokens_BT: jax.Array,
    source: Source | None = None,
    *,
    place: str = HEADS[0],
    instead: jax.Array | float = 0.0,
    segments_BT: jax.Array | None = None,
    counted_BT: jax.Array | None = None,
    tokens_at_once: int = TOKENS,
    on_layer: OnLayer | None = None,
) -> jax.Array:
    """By how much the mean next-token loss of each text grows without each head, in nats, [L,N,B] float32.

    Args:
      tokens_BT: int32 tokens; of a network that translates, what it writes after `source`.
      place: one of `places.HEADS`: self-attention, or attention to a source.
      instead: what stands in place of what the heads read, with the axes [L,B,T,N,H] (of size 1, where all is alike):
        recorded elsewhere, or its mean over the batch, so that what a network always finds there is not missed.
      segments_BT: int32, 1 for a text's tokens and 0 for the padding behind them; by default there is none.
      counted_BT: 0 for tokens whose loss does not count; by default all do that are no padding, but for the first.
      tokens_at_once: bounds the memory: about so many tokens are computed at a time.
      on_layer: is told after each layer how many are done, of how many; all is then not one call, but one a layer.

    Raises:
      ConfigError: a network without heads, or one that does not predict the next token.
    """
    _check_predicts(module.config)
    tokens_BT, segments_BT, source, _ = inputs = _inputs(module, tokens_BT, segments_BT, source, place, HEADS)
    if counted_BT is not None:
        inputs = tokens_BT, segments_BT, source, jnp.asarray(counted_BT)
    return _changes(module, params, inputs, instead, (place, None, tokens_at_once), on_layer)


def knock_out_logits(
    module: Any,
    params: Any,
    tokens_BT: jax.Array,
    at: int,
    source: Source | None = None,
    *,
    place: str = HEADS[0],
    instead: jax.Array | float = 0.0,
    tokens_at_once: int = TOKENS,
    on_layer: OnLayer | None = None,
) -> jax.Array:
    """The logits at the token `at` without each head, [L,N,B,V] float32; the arguments are those of `knock_out_heads`.

    Raises:
      ConfigError: a network without heads.
    """
    inputs = _inputs(module, tokens_BT, None, source, place, HEADS)
    at = at % inputs[0].shape[1]
    return _changes(module, params, inputs, instead, (place, at, tokens_at_once), on_layer)


def knock_out_layers(
    module: Any,
    params: Any,
    tokens_BT: jax.Array,
    source: Source | None = None,
    *,
    place: str = ADDED[0],
    instead: jax.Array | float = 0.0,
    segments_BT: jax.Array | None = None,
    tokens_at_once: int = TOKENS,
) -> jax.Array:
    """The same as `knock_out_heads` without all that a layer adds to the residual stream at a place of ADDED, [L,B]."""
    _check_predicts(module.config)
    inputs = _inputs(module, tokens_BT, segments_BT, source, place, ADDED)
    return _changes(module, params, inputs, instead, (place, None, tokens_at_once))[:, 0]


def _check_predicts(config: Config) -> None:
    if config.model.network == "encoder":
        raise ConfigError("--model.network=encoder does not predict the next token: measure its logits instead.")


def _inputs(
    module: Any, tokens_BT: Any, segments_BT: Any, source: Source | None, place: str, places: Sequence[str]
) -> tuple[jax.Array, jax.Array, Source | None, jax.Array]:
    config: Config = module.config
    there = [name for name in places if name in places_of(module)]
    if not there:
        raise ConfigError(f"--model.network={config.model.network} has no {place} to knock out.")
    if place not in there:
        raise ConfigError(f"{place} cannot be knocked out in this network; these can: {', '.join(there)}.")
    check_length(config, max(tokens_BT.shape[1], 0 if source is None else source.tokens_BS.shape[1]))
    tokens_BT = jnp.asarray(tokens_BT)
    segments_BT = jnp.ones_like(tokens_BT) if segments_BT is None else jnp.asarray(segments_BT)
    return tokens_BT, segments_BT, source, segments_BT


How = tuple[str, int | None, int]  # Without what; the token whose logits are asked for; tokens at once.


def _changes(
    module: Any, params: Any, inputs: Any, instead: jax.Array | float, how: How, on_layer: OnLayer | None = None
) -> jax.Array:
    """Without each of N heads (or without all of them: N is 1), by how much the losses change, [L,N,B], or the logits
    at a token, [L,N,B,V].
    """
    plain = _plain(module, params, inputs, how)
    run = partial(_without, module, params, inputs, jnp.asarray(instead, jnp.float32), plain, how)
    return each_layer(run, module.config.model.num_layers, on_layer)


@partial(jax.jit, static_argnums=(0, 3))
def _plain(module: Any, params: Any, inputs: Any, how: How) -> Any:
    """What enters each layer, [L,B,T,D], the encoded source with its segments, and the losses [B], if they count."""
    tokens_BT, segments_BT, source, counted_BT = inputs
    with asking(Asked(frozenset((RESIDUAL[0],)), ALL)):
        x_BTD, found = module.apply(
            {"params": params}, tokens_BT, None, segments_BT, source=source, head=False, mutable=[INTERMEDIATES]
        )
    before_LBTD = found[INTERMEDIATES]["layers"]["residual/before"]
    losses_B = _measured(module.config, params, x_BTD, tokens_BT, counted_BT, None) if how[1] is None else None
    return before_LBTD, encoded(module, params, source), losses_B


@partial(jax.jit, static_argnums=(0, 5))
def _without(
    module: Any, params: Any, inputs: Any, instead: jax.Array, plain: Any, how: How, layers_X: jax.Array
) -> jax.Array:
    """Without the heads of these layers.

    What enters a layer without its heads is what enters it with them, so each edit costs the layers behind it only.
    """
    (place, at, at_once), (before_LBTD, memory, losses_B) = how, plain
    (tokens_BT, segments_BT, _, counted_BT), config = inputs, module.config
    N = config.model.num_heads if place in HEADS else 1

    def of_layer(layer: jax.Array) -> jax.Array:
        value = instead if instead.ndim == 0 else instead[layer % len(instead)]

        def without(head: jax.Array) -> jax.Array:
            keep_N = 1 - jax.nn.one_hot(head, N)
            keep = keep_N[None, None, :, None] if place in HEADS else keep_N[None, :, None]
            edits = nested({place: Edit(keep, (1 - keep) * value)})["layers"]
            x_BTD: Any = Rest(config).apply({"params": params}, before_LBTD[layer], layer, edits, segments_BT, *memory)
            return _measured(config, params, x_BTD, tokens_BT, counted_BT, at)

        return jax.lax.map(without, jnp.arange(N), batch_size=max(1, min(N, at_once // tokens_BT.size)))

    found_XN = jax.lax.map(of_layer, layers_X)
    return found_XN if losses_B is None else found_XN - losses_B[None, None]


def _measured(
    config: Config, params: Any, x_BTD: jax.Array, tokens_BT: jax.Array, counted_BT: jax.Array, at: int | None
) -> jax.Array:
    """The loss of each text, [B], or the logits at a token, [B,V]."""
    logits_BTV = head_logits(config, params, x_BTD if at is None else x_BTD[:, at, None])
    return _loss(logits_BTV, tokens_BT, counted_BT) if at is None else logits_BTV[:, 0]


def _loss(logits_BTV: jax.Array, tokens_BT: jax.Array, counted_BT: jax.Array) -> jax.Array:
    """Mean negative log-likelihood of each text's tokens after the first, [B]."""
    counted_BT = (counted_BT[:, 1:] != 0).astype(jnp.float32)
    nll_BT = losses_of(logits_BTV, tokens_BT)
    return jnp.sum(nll_BT * counted_BT, axis=1) / jnp.sum(counted_BT, axis=1)
