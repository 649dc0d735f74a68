"""Choosing a token from the logits: greedily, or drawn from the distribution after cutting off its tail.

Filters apply in this order, the one of Hugging Face `transformers`: temperature, top-k, top-p, min-p. Each looks at
the distribution that the one before it left.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from configs.schema import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How to choose; the defaults draw from the network's own distribution.

    Attributes:
      temperature: logits are divided by it; 0 takes the likeliest token.
      top_k: keep only the k likeliest tokens; 0 keeps all.
      top_p: keep the fewest tokens whose probabilities add up to at least p (Holtzman et al. 2020); 1 keeps all.
      min_p: keep tokens at least this times as likely as the likeliest (Nguyen et al. 2024); 0 keeps all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        for name, valid, range_text in (
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
        ):
            if not valid:
                raise ConfigError(f"--{name}={getattr(self, name)}: it must be {range_text}.")


def filter_logits(logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits [B,V] float32 of the distribution that is drawn from; -inf where a token was cut off."""
    logits_BV = logits_BV / sampling.temperature
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        lowest_kept_B1 = jax.lax.top_k(logits_BV, sampling.top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < lowest_kept_B1, -jnp.inf, logits_BV)
    if sampling.top_p < 1:
        order_BV = jnp.argsort(-logits_BV, axis=-1, stable=True)
        sorted_BV = jax.nn.softmax(jnp.take_along_axis(logits_BV, order_BV, axis=-1), axis=-1)
        before_BV = jnp.cumsum(sorted_BV, axis=-1) - sorted_BV  # Mass of all that is likelier.
        kept_BV = jnp.take_along_axis(before_BV < sampling.top_p, jnp.argsort(order_BV, axis=-1), axis=-1)
        logits_BV = jnp.where(kept_BV, logits_BV, -jnp.inf)
    if sampling.min_p > 0:
        highest_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV < highest_B1 + jnp.log(sampling.min_p), -jnp.inf, logits_BV)
    return logits_BV


def choose(logits_BV: jax.Array, keys_B: jax.Array, sampling: Sampling) -> jax.Array:
    """One token per row, [B] int32; each row draws with its own key, so that no row depends on its neighbours."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    draw = jax.vmap(jax.random.categorical)
    return draw(keys_B, filter_logits(logits_BV, sampling)).astype(jnp.int32)
