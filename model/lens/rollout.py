"""Attention rollout and flow: how much of each input a vector holds, if every layer only mixes what it reads."""

from __future__ import annotations

import logging

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

UNITS = 10**7  # Of a flow of 1.
SINK = 0.95  # Of a share of which more is on the first token, nothing is left to be seen.


def rollout(weights_LBNTS: jax.Array, *, without_sink: bool = False) -> jax.Array:
    """The share of each input token in what stands at each place after the last layer, [B,T,S] float32.

    Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3: heads are averaged, the residual
    connection counts as much as they do, and the layers are multiplied. It knows nothing of what the values are: a head
    that reads much may write little. In deep networks most heads rest on the first token (Xiao et al. 2024), and the
    product of the layers has all of its weight there; that is logged.

    Args:
      weights_LBNTS: the self-attention weights of all layers, as recorded; T = S.
      without_sink: what a token after the first looks at the first counts as not looking: its own vector gets it.

    Returns:
      Shares whose rows sum to 1.
    """
    if without_sink:
        weights_LBNTS = jnp.asarray(weights_LBNTS).at[..., 1:, 0].set(0)
    mean_LBTS = jnp.mean(weights_LBNTS.astype(jnp.float32), axis=2)
    identity_TS = jnp.eye(mean_LBTS.shape[-1], dtype=jnp.float32)
    mixed_LBTS = 0.5 * mean_LBTS + 0.5 * identity_TS[None, None]
    mixed_LBTS = mixed_LBTS / jnp.sum(mixed_LBTS, axis=-1, keepdims=True)

    def through(shares_BTS: jax.Array, mixed_BTS: jax.Array) -> tuple[jax.Array, None]:
        return jnp.einsum("BTR,BRS->BTS", mixed_BTS, shares_BTS), None

    shares_BTS = jax.lax.scan(through, mixed_LBTS[0], mixed_LBTS[1:])[0]
    if not isinstance(shares_BTS, Tracer) and shares_BTS.shape[1] > 1:
        first = float(jnp.mean(shares_BTS[:, -1, 0]))
        if first > SINK:
            logging.getLogger("seq2see").warning(
                f"Attention rollout: {first:.4f} of the last token's vector is said to be the first token, on which "
                "heads rest that look for nothing. Leave it out by without_sink=True."
            )
    return shares_BTS


def flow(weights_LBNTS: jax.Array, at: int) -> np.ndarray:
    """How much can flow from each token through all layers to what stands at the token `at`, [B,S] float64.

    Abnar & Zuidema 2020, section 3: the largest flow in the network whose pipes are as wide as heads look on average,
    and half of it by the residual connection. For short texts: it is found pipe by pipe, for each token.

    Args:
      weights_LBNTS: as of `rollout`.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    mean_LBTS = np.asarray(weights_LBNTS, np.float64).mean(axis=2)
    L, B, T, _ = mean_LBTS.shape
    at = at % T
    flows_BS = np.zeros((B, T))
    for row in range(B):
        mixed_LTS = 0.5 * mean_LBTS[:, row] + 0.5 * np.eye(T)
        mixed_LTS /= mixed_LTS.sum(axis=-1, keepdims=True)
        # Node l T + t is the vector of token t before layer l; the flow goes down, in whole units.
        pipes = np.zeros(((L + 1) * T, (L + 1) * T), np.int32)
        for layer in range(L):
            upper, lower = slice((layer + 1) * T, (layer + 2) * T), slice(layer * T, (layer + 1) * T)
            pipes[upper, lower] = np.round(mixed_LTS[layer] * UNITS)
        graph = csr_array(pipes)
        for token in range(T):
            flows_BS[row, token] = maximum_flow(graph, L * T + at, token).flow_value / UNITS
    return flows_BS
