"""Contrastive search: take what is likely, but not what says again what has been said.

Su et al. 2022, "A Contrastive Framework for Neural Text Generation", section 4: of the likeliest tokens that one is
taken which has the highest (1 - alpha) p(token) - alpha max_j cos(its vector, vector of token j before it). A vector
is what the output layer would read at its place, so each candidate is read before one is taken. Nothing is drawn.

Shapes: B rows, K candidates, T prompt length, S slots, D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from configs.derived import translates
from configs.schema import ConfigError
from model.generate.cache import empty_cache, rows_of
from model.generate.decode import bucket, padded, room_for
from model.transformer import head_logits


@flax.struct.dataclass
class _Texts:
    """What goes from one token to the next; the cache has K equal rows for each text."""

    cache: Any
    logits_BV: jax.Array
    said_BSD: jax.Array  # The vectors of all tokens so far, of length 1.
    position_B: jax.Array  # Of the token that is chosen next.
    tokens_BS: jax.Array  # Written so far.
    length: jax.Array
    done_B: jax.Array


def contrastive_search(
    module: Any,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    candidates: int,
    alpha: float,
    max_tokens: int,
    ends: Sequence[int],
) -> list[list[int]]:
    """What follows each prompt, at most `max_tokens` tokens, the last of which is one of `ends` where a text ends.

    Args:
      prompts: token ids, at least one per row.
      candidates: how many of the likeliest tokens are compared; 1 is greedy.
      alpha: how much likeness to what was said counts, 0 to 1; 0 is greedy.

    Raises:
      ConfigError: numbers out of range, a network that translates, a prompt longer than a learned position table.
    """
    config = module.config
    if not 1 <= candidates <= config.tokenizer.vocab_size:
        raise ConfigError(f"--contrastive={candidates}: it must be from 1 to {config.tokenizer.vocab_size} candidates.")
    if not 0 <= alpha <= 1:
        raise ConfigError(f"--alpha={alpha}: it must be from 0 to 1.")
    if translates(config):
        raise ConfigError("--contrastive is for networks that continue a text; translate with --beams.")
    max_tokens = room_for(config, prompts, max_tokens)
    length_B = np.array([len(prompt) for prompt in prompts], np.int32)
    tokens_BT = padded(prompts, ends[0])
    slots = bucket(tokens_BT.shape[1] + max_tokens)
    cache = empty_cache(config, len(prompts), slots)
    texts = _read(module, candidates, slots, params, cache, tokens_BT, length_B)
    settings = jnp.array(ends, jnp.int32), jnp.float32(alpha), jnp.int32(max_tokens)
    tokens_BS, written = _search(module, candidates, params, texts, *settings)
    found = []
    for tokens_S in np.asarray(tokens_BS)[:, : int(written)].tolist():
        end = next((place for place, token in enumerate(tokens_S) if token in ends), len(tokens_S) - 1)
        found.append(tokens_S[: end + 1])
    return found


@partial(jax.jit, static_argnums=(0, 1, 2))
def _read(
    module: Any, candidates: int, slots: int, params: Any, cache: Any, tokens_BT: jax.Array, length_B: jax.Array
) -> _Texts:
    B, T = tokens_BT.shape
    place_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
    real_BT = place_BT < length_B[:, None]
    hidden_BTD, variables = module.apply(
        {"params": params, "cache": cache},
        tokens_BT,
        place_BT,
        real_BT.astype(jnp.int32),
        head=False,
        mutable=["cache"],
    )
    last_B1D = jnp.take_along_axis(hidden_BTD, (length_B - 1)[:, None, None], axis=1)
    said_BSD = jnp.zeros((B, slots, hidden_BTD.shape[-1]), jnp.float32)
    said_BSD = said_BSD.at[:, :T].set(jnp.where(real_BT[:, :, None], _unit(hidden_BTD), 0.0))
    return _Texts(
        cache=rows_of(variables["cache"], jnp.repeat(jnp.arange(B), candidates)),
        logits_BV=head_logits(module.config, params, last_B1D)[:, 0],
        said_BSD=said_BSD,
        position_B=length_B,
        tokens_BS=jnp.zeros((B, slots), jnp.int32),
        length=jnp.int32(0),
        done_B=jnp.zeros(B, bool),
    )


@partial(jax.jit, static_argnums=(0, 1))
def _search(
    module: Any,
    candidates: int,
    params: Any,
    texts: _Texts,
    ends_E: jax.Array,
    alpha: jax.Array,
    max_tokens: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The tokens written [B,S], and how many there are in the longest text."""
    B, S = texts.tokens_BS.shape
    row_B, slot_S = jnp.arange(B), jnp.arange(S, dtype=jnp.int32)

    def goes_on(texts: _Texts) -> jax.Array:
        return (texts.length < max_tokens) & ~jnp.all(texts.done_B)

    def one_token(texts: _Texts) -> _Texts:
        share_BK, token_BK = jax.lax.top_k(jax.nn.softmax(texts.logits_BV), candidates)
        hidden_R1D, variables = module.apply(
            {"params": params, "cache": texts.cache},
            token_BK.reshape(-1, 1), jnp.repeat(texts.position_B, candidates)[:, None], head=False, mutable=["cache"],
        )  # fmt: skip
        unit_BKD = _unit(hidden_R1D).reshape(B, candidates, -1)
        before_BS = slot_S[None] < texts.position_B[:, None]
        cosine_BKS = jnp.einsum("BKD,BSD->BKS", unit_BKD, texts.said_BSD)
        likeness_BK = jnp.max(jnp.where(before_BS[:, None], cosine_BKS, -1.0), axis=-1)
        best_B = jnp.argmax((1 - alpha) * share_BK - alpha * likeness_BK, axis=1)
        token_B, taken_B = token_BK[row_B, best_B], row_B * candidates + best_B
        token_B = jnp.where(texts.done_B, ends_E[0], token_B)
        return dataclasses.replace(
            texts,
            cache=rows_of(variables["cache"], jnp.repeat(taken_B, candidates)),
            logits_BV=head_logits(module.config, params, hidden_R1D[taken_B])[:, 0],
            said_BSD=texts.said_BSD.at[row_B, texts.position_B].set(unit_BKD[row_B, best_B]),
            position_B=texts.position_B + 1,
            tokens_BS=texts.tokens_BS.at[:, texts.length].set(token_B),
            length=texts.length + 1,
            done_B=texts.done_B | jnp.any(token_B[:, None] == ends_E[None], axis=1),
        )

    texts = jax.lax.while_loop(goes_on, one_token, texts)
    return texts.tokens_BS, texts.length


def _unit(hidden_BTD: jax.Array) -> jax.Array:
    hidden_BTD = hidden_BTD.astype(jnp.float32)
    return hidden_BTD / jnp.maximum(jnp.linalg.norm(hidden_BTD, axis=-1, keepdims=True), 1e-12)
