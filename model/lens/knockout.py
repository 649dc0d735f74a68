"""Knock-outs: what becomes of the prediction without a head or a layer, for each of them, in one compiled call.

Michel et al. 2019, "Are Sixteen Heads Really Better than One?", sections 2.3 and 3.1.

Shapes: L layers, N heads, B batch, T length, V vocabulary, E edited networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from configs.convert import is_recurrent, translates
from configs.schema import Config, ConfigError
from model.lens.places import ADDED, HEADS, Edit, collection
from model.source import Source

TOKENS = 512  # That are computed at once, by default: some hundred MB of logits, with a large vocabulary.


def knock_out_heads(
    module: Any,
    params: Any,
    tokens_BT: jax.Array,
    source: Source | None = None,
    *,
    place: str = HEADS[0],
    segments_BT: jax.Array | None = None,
    tokens_at_once: int = TOKENS,
) -> jax.Array:
    """By how much the mean next-token loss of each text grows without each head, in nats, [L,N,B] float32.

    Args:
      tokens_BT: int32 tokens; of a network that translates, what it writes after `source`.
      place: one of `places.HEADS`: self-attention, or attention to a source.
      segments_BT: int32, 1 for a text's tokens and 0 for the padding behind them; by default there is none.
      tokens_at_once: bounds the memory: about so many tokens are computed at a time.

    Raises:
      ConfigError: a network without heads, or one that does not predict the next token.
    """
    tokens_BT = jnp.asarray(tokens_BT)
    segments_BT = jnp.ones_like(tokens_BT) if segments_BT is None else jnp.asarray(segments_BT)
    _check_predicts(module.config)
    return _heads(module, params, tokens_BT, segments_BT, source, place, None, tokens_at_once)


def knock_out_logits(
    module: Any, params: Any, tokens_BT: jax.Array, at: int, source: Source | None = None, *, place: str = HEADS[0],
    tokens_at_once: int = TOKENS,
) -> jax.Array:  # fmt: skip
    """The logits at the token `at` without each head, [L,N,B,V] float32; the arguments are those of `knock_out_heads`.

    Raises:
      ConfigError: a network without heads.
    """
    tokens_BT = jnp.asarray(tokens_BT)
    at = at % tokens_BT.shape[1]
    return _heads(module, params, tokens_BT, jnp.ones_like(tokens_BT), source, place, at, tokens_at_once)


def knock_out_layers(
    module: Any,
    params: Any,
    tokens_BT: jax.Array,
    source: Source | None = None,
    *,
    place: str = ADDED[0],
    segments_BT: jax.Array | None = None,
    tokens_at_once: int = TOKENS,
) -> jax.Array:
    """The same as `knock_out_heads` without all that a layer adds to the residual stream at a place of ADDED, [L,B]."""
    tokens_BT = jnp.asarray(tokens_BT)
    segments_BT = jnp.ones_like(tokens_BT) if segments_BT is None else jnp.asarray(segments_BT)
    _check_predicts(module.config)
    _check_place(module.config, place, ADDED)
    keep_E = 1 - jnp.eye(module.config.model.num_layers, dtype=jnp.float32)[:, :, None, None, None]
    inputs = tokens_BT, segments_BT, source
    return _changes(module, params, inputs, place, keep_E, None, tokens_at_once)


def _heads(
    module: Any, params: Any, tokens_BT: jax.Array, segments_BT: jax.Array, source: Source | None, place: str,
    at: int | None, tokens_at_once: int,
) -> jax.Array:  # fmt: skip
    _check_place(module.config, place, HEADS)
    L, N = module.config.model.num_layers, module.config.model.num_heads
    keep_E = 1 - jnp.eye(L * N, dtype=jnp.float32).reshape(L * N, L, 1, 1, N, 1)
    inputs = tokens_BT, segments_BT, source
    found_E = _changes(module, params, inputs, place, keep_E, at, tokens_at_once)
    return found_E.reshape(L, N, *found_E.shape[1:])


def _check_predicts(config: Config) -> None:
    if config.model.network == "encoder":
        raise ConfigError("--model.network=encoder does not predict the next token: measure its logits instead.")


def _check_place(config: Config, place: str, places: Sequence[str]) -> None:
    if is_recurrent(config):
        raise ConfigError(f"--model.network={config.model.network} has no {place} to knock out.")
    if place not in places or ("cross_attention" in place and not translates(config)):
        there = [name for name in places if translates(config) or "cross_attention" not in name]
        raise ConfigError(f"{place} cannot be knocked out in this network; these can: {', '.join(there)}.")


@partial(jax.jit, static_argnums=(0, 3, 5, 6))
def _changes(
    module: Any, params: Any, inputs: Any, place: str, keep_E: jax.Array, at: int | None, tokens_at_once: int
) -> jax.Array:
    """With each of E edits, by how much the losses change, [E,B], or the logits at the token `at`, [E,B,V]."""
    tokens_BT, segments_BT, source = inputs

    def run(edits: dict[str, Edit]) -> jax.Array:
        variables = {"params": params} | collection(edits)
        logits_BTV = module.apply(variables, tokens_BT, None, segments_BT, source=source)
        return _loss(logits_BTV, tokens_BT, segments_BT) if at is None else logits_BTV[:, at]

    at_once = max(1, min(len(keep_E), tokens_at_once // tokens_BT.size))
    found_E = jax.lax.map(lambda keep: run({place: Edit(keep, jnp.zeros_like(keep))}), keep_E, batch_size=at_once)
    return found_E - run({})[None] if at is None else found_E


def _loss(logits_BTV: jax.Array, tokens_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """Mean negative log-likelihood of each text's tokens after the first, [B]."""
    logits_BTV = logits_BTV[:, :-1]
    target_BT = jnp.take_along_axis(logits_BTV, tokens_BT[:, 1:, None], axis=-1)[..., 0]
    counted_BT = (segments_BT[:, 1:] != 0).astype(jnp.float32)
    nll_BT = jax.nn.logsumexp(logits_BTV, axis=-1) - target_BT
    return jnp.sum(nll_BT * counted_BT, axis=1) / jnp.sum(counted_BT, axis=1)
