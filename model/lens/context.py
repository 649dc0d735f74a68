"""How much a network makes of what stands before: its loss token by token, and how it falls along a text.

Shapes: B batch, T length.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from model.source import Source


@partial(jax.jit, static_argnums=0)
def token_losses(module: Any, params: Any, tokens_BT: jax.Array, source: Source | None = None) -> jax.Array:
    """Negative log-likelihood in nats of each token after the first, given those before it, [B,T-1] float32."""
    return losses_of(module.apply({"params": params}, tokens_BT, source=source), tokens_BT)


def losses_of(logits_BTV: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    """The same of logits [B,T,V]."""
    logits_BTV = logits_BTV[:, :-1].astype(jnp.float32)
    target_BT = jnp.take_along_axis(logits_BTV, tokens_BT[:, 1:, None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BTV, axis=-1) - target_BT


def in_context_score(losses_BT: jax.Array, early: int = 50, late: int = 500) -> jax.Array:
    """Mean loss at the token `late` less that at the token `early` (counted from 1), in nats, float32 scalar.

    Below 0 where a longer context helps: Olsson et al. 2022, "In-context Learning and Induction Heads", who find about
    -0.4 for all sizes of network, once it has induction heads.

    Args:
      losses_BT: of the tokens 2, 3, ... of each text, as `token_losses` gives them.

    Raises:
      ValueError: a text that ends before the token `late`.
    """
    if not 2 <= early < late <= losses_BT.shape[1] + 1:
        raise ValueError(f"Tokens {early} and {late} are asked for, of texts of {losses_BT.shape[1] + 1}.")
    return jnp.mean(losses_BT[:, late - 2]) - jnp.mean(losses_BT[:, early - 2])
