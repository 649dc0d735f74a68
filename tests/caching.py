"""Decode from a cache as a program does, and compare with the full pass: for each kind of network."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from tiny import random_params, random_tokens

from model.generate.cache import empty_cache


def decode_from_cache(module: Any, tolerance: float = 1e-5) -> None:
    """Three prompts of unequal lengths at once, then token by token; fails where logits differ from the full pass."""
    params, tokens_BT = random_params(module), random_tokens(3, 15)
    lengths_B, steps, longest = np.array([7, 1, 9], np.int32), 5, 9
    places_BT = np.broadcast_to(np.arange(longest, dtype=np.int32), (3, longest))
    segments_BT = (places_BT < lengths_B[:, None]).astype(np.int32)

    @jax.jit
    def read(cache: Any, *inputs: Any) -> Any:
        return module.apply({"params": params, "cache": cache}, *inputs, mutable=["cache"])

    cache = empty_cache(module.config, 3, 24)
    logits_BTV, variables = read(cache, np.where(segments_BT, tokens_BT[:, :longest], 3), places_BT, segments_BT)
    found = [np.asarray(logits_BTV)[np.arange(3), lengths_B - 1]]
    for step in range(steps):
        at_B1 = lengths_B[:, None] + np.int32(step)
        tokens_B1 = np.take_along_axis(tokens_BT, at_B1, axis=1)
        logits_BTV, variables = read(variables["cache"], tokens_B1, at_B1, np.ones_like(at_B1))
        found.append(np.asarray(logits_BTV)[:, 0])
    full_BTV = np.asarray(jax.jit(module.apply)({"params": params}, tokens_BT))
    expected = [full_BTV[np.arange(3), lengths_B - 1 + step] for step in range(steps + 1)]
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(full_BTV).max())
