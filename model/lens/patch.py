"""Activation patching: give one run a piece of what another run computed, and see what becomes of its prediction.

Vig et al. 2020, "Investigating Gender Bias in Language Models Using Causal Mediation Analysis"; Meng et al. 2022,
"Locating and Editing Factual Associations in GPT", section 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from model.lens.places import Edit, collection
from model.lens.record import record


def edited(module: Any, params: Any, tokens_BT: jax.Array, edits: Mapping[str, Edit]) -> jax.Array:
    """Logits [B,T,V] of a network that goes on with changed values at the places `edits`; without any, its own.

    Raises:
      KeyError: a place that cannot be changed; the message lists those that can.
    """
    return module.apply({"params": params} | collection(edits), tokens_BT)


def patch_everywhere(
    module: Any, params: Any, tokens_BT: jax.Array, other_BT: jax.Array, at: int, place: str = "layers/residual/after"
) -> jax.Array:
    """Logits [L,S,B,V] at the token `at` with the vector of layer l and token s taken from the run on `other_BT`.

    All L x S runs are one call of a compiled program.

    Args:
      tokens_BT, other_BT: int32 tokens of the same shape, to be read from their first on.
      at: the token whose logits are asked for.
      place: which vector of a layer: one of `places.RESIDUAL`.

    Raises:
      KeyError: a place that cannot be changed, or that this network does not have.
      ValueError: the shapes differ.
    """
    if tokens_BT.shape != other_BT.shape:
        raise ValueError(f"Patching needs texts of as many tokens, not of {tokens_BT.shape} and {other_BT.shape}.")
    return _patch_everywhere(module, params, tokens_BT, record(module, params, other_BT, (place,))[place], at, place)


@partial(jax.jit, static_argnums=(0, 4, 5))
def _patch_everywhere(
    module: Any, params: Any, tokens_BT: jax.Array, other_LBSD: jax.Array, at: int, place: str
) -> jax.Array:
    L, _, S, _ = other_LBSD.shape

    def patched(layer: jax.Array, token: jax.Array) -> jax.Array:
        here_LS = (jnp.arange(L) == layer)[:, None] & (jnp.arange(S) == token)[None, :]
        here_LBSD = here_LS[:, None, :, None]
        edit = Edit(keep=(~here_LBSD).astype(jnp.float32), add=jnp.where(here_LBSD, other_LBSD, 0))
        return edited(module, params, tokens_BT, {place: edit})[:, at]

    each_layer = jax.vmap(jax.vmap(patched, in_axes=(None, 0)), in_axes=(0, None))
    return each_layer(jnp.arange(L), jnp.arange(S))
