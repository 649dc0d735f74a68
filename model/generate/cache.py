"""What is kept of the tokens read so far, so that each is computed once: keys and values, or a state."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from configs.convert import head_width, is_recurrent, num_kv_heads, translates
from configs.schema import Config
from model import latent, linear, lstm


def empty_cache(config: Config, rows: int, slots: int, source_slots: int = 0) -> Any:
    """A `cache` collection for `rows` texts of at most `slots` tokens, in the dtype of computing.

    Leaves under `layers` are [L, rows, ...]: keys and values [L, rows, slots, K, H], or what the attention kind keeps.
    A network that translates also keeps what it knows of sources of `source_slots` tokens.
    """
    if is_recurrent(config):
        return lstm.empty_cache(config, rows, source_slots)
    kinds = {"latent": latent.cache_shapes, "linear": linear.linear_cache_shapes, "delta": linear.delta_cache_shapes}
    shapes_of = kinds.get(config.model.attention, key_value_shapes)
    layers = {"attention": _zeros(config, shapes_of(config, rows, slots))}
    if not translates(config):
        return {"layers": layers}
    layers["cross_attention"] = _zeros(config, key_value_shapes(config, rows, source_slots))
    return {"layers": layers, "source_segments": jnp.zeros((rows, source_slots), jnp.int32)}


def key_value_shapes(config: Config, rows: int, slots: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape (without layers) and dtype of what multi-head attention keeps."""
    shape = (rows, slots, num_kv_heads(config), head_width(config))
    return {name: (shape, config.model.dtype) for name in ("key", "value")}


def _zeros(config: Config, shapes: dict[str, tuple[tuple[int, ...], str]]) -> dict[str, Any]:
    L = config.model.num_layers
    return {name: jnp.zeros((L, *shape), dtype) for name, (shape, dtype) in shapes.items()}
