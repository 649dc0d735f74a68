"""Activation patching: give one run a piece of what another run computed, and see what becomes of its prediction.

Vig et al. 2020, "Investigating Gender Bias in Language Models Using Causal Mediation Analysis"; Meng et al. 2022,
"Locating and Editing Factual Associations in GPT", section 2.

Shapes: L layers, N heads, B batch, T length (S the same tokens, one at a time), D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from configs.derived import is_recurrent
from model.lens.edits import replaced, spot
from model.lens.places import HEADS, RESIDUAL, Edit, nested
from model.lens.record import record
from model.lens.rest import OnLayer, Rest, each_layer, encoded
from model.source import Source
from model.transformer import head_logits

AT_ONCE = 512  # Tokens that are computed at once, about: bounds the memory.


def edited(
    module: Any, params: Any, tokens_BT: jax.Array, edits: Mapping[str, Edit], source: Source | None = None
) -> jax.Array:
    """Logits [B,T,V] of a network that goes on with changed values at the places `edits`; without any, its own.

    Raises:
      KeyError: a place that cannot be changed, or that this network does not have; the message lists those that can.
    """
    return record(module, params, tokens_BT, (), source, edits)["logits"]


def patch_everywhere(
    module: Any,
    params: Any,
    tokens_BT: jax.Array,
    other_BT: jax.Array,
    at: int,
    place: str = "layers/residual/after",
    source: Source | None = None,
    on_layer: OnLayer | None = None,
) -> jax.Array:
    """Logits [L,S,B,V] at the token `at` with the vector of layer l and token s taken from the run on `other_BT`.

    All L x S runs are one call of a compiled program.

    Args:
      tokens_BT, other_BT: int32 tokens of the same shape, to be read from their first on.
      at: the token whose logits are asked for.
      place: which vector of a layer: one of `places.RESIDUAL` or of `places.ADDED`.
      source: of a network that translates, what both are translations of.
      on_layer: is told after each layer how many are done, of how many; all is then not one call, but one a layer.

    Raises:
      KeyError: a place that cannot be changed, or that this network does not have.
      ValueError: the shapes differ.
    """
    _check_shapes(tokens_BT, other_BT)
    theirs_LBSD = record(module, params, other_BT, (place,), source)[place]
    if is_recurrent(module.config):
        run, inputs = _patch_whole, (jnp.asarray(tokens_BT), source)
    else:
        before_LBTD = record(module, params, tokens_BT, RESIDUAL[:1], source)[RESIDUAL[0]]
        memory = jax.jit(encoded, static_argnums=0)(module, params, source)
        run, inputs = _patch_rest, (jnp.asarray(tokens_BT), memory, before_LBTD)
    of_layers = partial(run, module, params, inputs, theirs_LBSD, at % tokens_BT.shape[1], place)
    return each_layer(of_layers, module.config.model.num_layers, on_layer)


def _check_shapes(tokens_BT: jax.Array, other_BT: jax.Array) -> None:
    if tokens_BT.shape != other_BT.shape:
        raise ValueError(f"Patching needs texts of as many tokens, not of {tokens_BT.shape} and {other_BT.shape}.")


def _each_token(run: Any, tokens_BT: jax.Array) -> Any:
    at_once = max(1, AT_ONCE // tokens_BT.size)
    return jax.lax.map(run, jnp.arange(tokens_BT.shape[1]), batch_size=min(at_once, tokens_BT.shape[1]))


@partial(jax.jit, static_argnums=(0, 4, 5))
def _patch_rest(
    module: Any, params: Any, inputs: Any, theirs_LBSD: jax.Array, at: int, place: str, layers_X: jax.Array
) -> jax.Array:
    """The layers before the patched one are as they were, and are not computed again."""
    tokens_BT, memory, before_LBTD = inputs
    config = module.config

    def of_layer(layer: jax.Array) -> jax.Array:
        def patched(token: jax.Array) -> jax.Array:
            edit = replaced(spot(module, place, tokens_BT.shape[1], token=token)[0], theirs_LBSD[layer])
            edits = nested({place: edit})["layers"]
            x_BTD: Any = Rest(config).apply(
                {"params": params}, before_LBTD[layer], layer, edits, jnp.ones_like(tokens_BT), *memory
            )
            return head_logits(config, params, x_BTD[:, at, None])[:, 0]

        return _each_token(patched, tokens_BT)

    return jax.lax.map(of_layer, layers_X)


@partial(jax.jit, static_argnums=(0, 4, 5))
def _patch_whole(
    module: Any, params: Any, inputs: Any, theirs_LBSD: jax.Array, at: int, place: str, layers_X: jax.Array
) -> jax.Array:
    tokens_BT, source = inputs

    def of_layer(layer: jax.Array) -> jax.Array:
        def patched(token: jax.Array) -> jax.Array:
            edit = replaced(spot(module, place, tokens_BT.shape[1], layer=layer, token=token), theirs_LBSD)
            return edited(module, params, tokens_BT, {place: edit}, source)[:, at]

        return _each_token(patched, tokens_BT)

    return jax.lax.map(of_layer, layers_X)


def patch_paths(
    module: Any,
    params: Any,
    tokens_BT: jax.Array,
    other_BT: jax.Array,
    at: int,
    receiver: tuple[str, jax.Array],
    source: Source | None = None,
) -> jax.Array:
    """Logits [L,N,B,V] at the token `at` if one place hears from each head what that says in the run on `other_BT`.

    Everything else hears the heads as they were: what changes goes from the sending head to the receiver past all other
    heads (through feed-forward layers), and from there on as usual. Goldowsky-Dill et al. 2023, "Localizing Model
    Behavior with Path Patching"; Wang et al. 2022, "Interpretability in the Wild", section 3.1.

    Args:
      receiver: a place and a `spot` there, such as the queries of one head, or `final`: the logits.

    Raises:
      KeyError: a place that cannot be changed, or that this network does not have.
      ValueError: the shapes differ.
    """
    _check_shapes(tokens_BT, other_BT)
    place, spot_there = receiver
    ours, theirs = (record(module, params, x_BT, HEADS[:1], source)[HEADS[0]] for x_BT in (tokens_BT, other_BT))
    inputs = jnp.asarray(tokens_BT), source, at % tokens_BT.shape[1]
    return _patch_paths(module, params, inputs, ours, theirs, place, spot_there)


@partial(jax.jit, static_argnums=(0, 5))
def _patch_paths(
    module: Any, params: Any, inputs: Any, ours_LBTNH: jax.Array, theirs_LBTNH: jax.Array, place: str, there: jax.Array
) -> jax.Array:
    tokens_BT, source, at = inputs
    L, _, T, N, _ = ours_LBTNH.shape

    def patched(number: jax.Array) -> jax.Array:
        sender = spot(module, HEADS[0], T, layer=number // N, head=number % N)
        heads = replaced(jnp.ones_like(sender), jnp.where(sender, theirs_LBTNH, ours_LBTNH))
        heard = record(module, params, tokens_BT, (place,), source, {HEADS[0]: heads})[place]
        return edited(module, params, tokens_BT, {place: replaced(there, heard)}, source)[:, at]

    found = jax.lax.map(patched, jnp.arange(L * N), batch_size=min(L * N, max(1, AT_ONCE // tokens_BT.size)))
    return found.reshape(L, N, *found.shape[1:])
