"""The keys and values of all tokens read so far, so that each token is computed once."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from configs.convert import head_width, num_kv_heads
from configs.schema import Config


def empty_cache(config: Config, rows: int, slots: int) -> Any:
    """A `cache` collection: keys and values, each [L, rows, slots, K, H], in the dtype of computing."""
    model = config.model
    shape = (model.num_layers, rows, slots, num_kv_heads(config), head_width(config))
    return {"layers": {"attention": {name: jnp.zeros(shape, model.dtype) for name in ("key", "value")}}}
