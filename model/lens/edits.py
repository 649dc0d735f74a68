"""Edits by layer, head and token. All arguments may be arrays under `jax.vmap`: many experiments are then one program.

    edit = replaced(spot(module, place, T, layer=3, head=1), recorded[place])

Ablation by zero is `scaled(..., 0)`; by the mean, or by another text (resampling; Chan et al. 2022, "Causal
Scrubbing"), `replaced` by that. Attention is frozen by `replaced` weights of another run, and kept from a key by
`hidden` scores.

Shapes: L layers, B batch, T query length, S key length, N heads, H head width, D model width.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from configs.derived import encoder_layers, num_kv_heads
from model.lens.places import Edit, is_matrix

Index = jax.Array | int | None  # Which one; None is all.
HIDDEN = -1e9  # What takes a score out of a softmax.


def spot(
    module: Any, place: str, length: int, *, layer: Index = None, head: Index = None, token: Index = None,
    key: Index = None,
) -> jax.Array:  # fmt: skip
    """Where a value at `place` is to be changed: bool, with the axes of what `record` returns there, 1 where all alike.

    Args:
      length: of the text, T (of the source, for the places of an encoder).
      layer, head, token, key: which ones. Of keys and values, `head` is a key/value head, and of the hidden units of
        a mixture of experts it is the expert; `key` is for weights and scores.
    """
    config = module.config
    name, layers = place.rsplit("/", 1)[-1], 1
    if "layers/" in place:
        layers = encoder_layers(config) if place.startswith("encoder/") else config.model.num_layers
    of_experts = place.endswith("feed_forward/hidden") and config.model.num_experts > 0
    heads = num_kv_heads(config) if name in ("key", "value") else config.model.num_heads
    heads = config.model.num_experts if of_experts else heads
    at_L, at_T = _at(layer, layers), _at(token, length)
    at_LT = at_L[:, None] & at_T[None]
    if is_matrix(place):
        at_NS = _at(head, heads)[:, None] & _at(key, length)[None]
        return at_LT[:, None, None, :, None] & at_NS[None, None, :, None, :]
    if of_experts or name in ("query", "key", "value", "heads", "out_per_head"):
        return (at_LT[:, :, None] & _at(head, heads)[None, None])[:, None, :, :, None]
    return at_LT[:, None, :, None] if "layers/" in place else at_T[None, :, None]


def _at(index: Index, size: int) -> jax.Array:
    return jnp.ones((1,), bool) if index is None else jnp.arange(size) == jnp.asarray(index) % size


def scaled(spot: jax.Array, factor: jax.Array | float) -> Edit:
    """The values there times a number; 0 takes them away."""
    return Edit(jnp.where(spot, factor, 1.0), jnp.zeros((1,) * spot.ndim))


def added(spot: jax.Array, value: jax.Array | float) -> Edit:
    """Something is added to the values there, such as a direction to steer in."""
    return Edit(jnp.ones((1,) * spot.ndim), jnp.where(spot, value, 0.0))


def replaced(spot: jax.Array, value: jax.Array | float) -> Edit:
    """Other values in their place: of another run (patching), a mean, or this run's own without an edit (freezing)."""
    return Edit(1.0 - spot.astype(jnp.float32), jnp.where(spot, value, 0.0))


def hidden(spot: jax.Array) -> Edit:
    """Of scores: these keys are not seen by these queries, and the others get their weight."""
    return added(spot, HIDDEN)
