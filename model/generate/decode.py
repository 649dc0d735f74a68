"""Prefill once, then one compiled loop with a KV cache: no Python per token.

The loop runs in chunks so that text can be shown while the next chunk is computed.

Shapes: B rows, T prompt length, S cache slots, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from configs.convert import check_length, longest_text, translates
from configs.schema import Config
from model.generate.cache import empty_cache
from model.generate.choose import Sampling, choose
from model.source import Source

CHUNK = 16  # Tokens per call of the compiled loop: a trade between smooth streaming and few calls.
BUCKET = 32  # Prompts and caches are padded to multiples of this, so that few shapes are compiled.


class Chunk(NamedTuple):
    """Up to CHUNK new tokens of every row; log-probabilities are the network's own, before temperature and filters."""

    tokens_BC: np.ndarray
    logprobs_BC: np.ndarray
    top_tokens_BCK: np.ndarray  # The likeliest tokens at each place, best first.
    top_logprobs_BCK: np.ndarray


@flax.struct.dataclass
class State:
    """Everything that goes from one token to the next."""

    cache: Any
    logits_BV: jax.Array
    position_B: jax.Array  # Of the token that is chosen next.
    done_B: jax.Array


def generate(
    module: Any,
    params: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    max_tokens: int,
    seeds: Sequence[int],
    ends: Sequence[int],
    top: int = 0,
    sources: Sequence[Sequence[int]] | None = None,
) -> Iterator[Chunk]:
    """Continue each prompt by at most `max_tokens` tokens, chunk by chunk, until every row has written one of `ends`.

    A text also ends where a learned position table does.

    Args:
      prompts: token ids, at least one per row; lengths may differ.
      seeds: one per row; a row's text depends on its own prompt and seed only.
      ends: ids of the tokens that end a text; a row repeats the first of them once it is done.
      top: how many of the likeliest tokens to report at each place.
      sources: token ids of what each row translates, for networks that do.

    Raises:
      ValueError: an empty prompt.
      ConfigError: a prompt longer than a learned position table.
    """
    if not prompts or not min(map(len, prompts)) or (sources is not None and not min(map(len, sources))):
        raise ValueError("A prompt needs at least one token.")
    max_tokens = room_for(module.config, prompts, max_tokens)
    state = prefill(module, params, prompts, max_tokens, ends[0], sources)
    ends_E = jnp.array(ends, jnp.int32)
    keys_B = jax.vmap(jax.random.key)(np.array([seed % 2**32 for seed in seeds], np.uint32))

    ahead: tuple[State, tuple[jax.Array, ...]] | None = None
    for start in range(0, max_tokens, CHUNK):
        state, out = ahead or decode_chunk(module, sampling, top, params, state, keys_B, ends_E)
        # The next chunk is on its way before this one is read, unless this is the last.
        more = start + CHUNK < max_tokens
        ahead = decode_chunk(module, sampling, top, params, state, keys_B, ends_E) if more else None
        yield Chunk(*(np.asarray(array)[:, : max_tokens - start] for array in out))
        if bool(jnp.all(state.done_B)):
            return


def room_for(config: Config, prompts: Sequence[Sequence[int]], max_tokens: int) -> int:
    """How many tokens can follow the longest prompt, at most `max_tokens`."""
    longest, room = max(map(len, prompts)), longest_text(config)
    check_length(config, longest)
    return min(max_tokens, room - longest) if room else max_tokens


def prefill(
    module: Any,
    params: Any,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    end: int,
    sources: Sequence[Sequence[int]] | None = None,
) -> State:
    """Read all prompts (and sources) at once, into a cache with room for `max_tokens` more.

    Raises:
      ConfigError: a source longer than a learned position table.
    """
    if translates(module.config) != (sources is not None):
        raise ValueError(
            f"A network of the kind {module.config.model.network} takes sources if it translates, only then."
        )
    lengths_B = np.array([len(prompt) for prompt in prompts], np.int32)
    source, source_slots = None, 0
    if sources is not None:
        check_length(module.config, max(map(len, sources)))
        source = Source.of(jnp.asarray(_padded(sources, end)), jnp.array([len(ids) for ids in sources], jnp.int32))
        source_slots = source.tokens_BS.shape[1]
    cache = empty_cache(module.config, len(prompts), bucket(int(lengths_B.max()) + max_tokens), source_slots)
    return _prefill(module, params, cache, _padded(prompts, end), lengths_B, source)


def bucket(length: int) -> int:
    """`length` rounded up to a size that things are compiled for."""
    return -(-length // BUCKET) * BUCKET


def _padded(rows: Sequence[Sequence[int]], end: int) -> np.ndarray:
    tokens_BT = np.full((len(rows), bucket(max(map(len, rows)))), end, np.int32)
    for tokens_T, row in zip(tokens_BT, rows, strict=True):
        tokens_T[: len(row)] = row
    return tokens_BT


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _prefill(
    module: Any, params: Any, cache: Any, tokens_BT: jax.Array, lengths_B: jax.Array, source: Source | None
) -> State:
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape)
    segments_BT = (positions_BT < lengths_B[:, None]).astype(jnp.int32)
    logits_BTV, variables = module.apply(
        {"params": params, "cache": cache}, tokens_BT, positions_BT, segments_BT, source=source, mutable=["cache"]
    )
    last_B11 = (lengths_B - 1)[:, None, None]
    logits_BV = jnp.take_along_axis(logits_BTV, last_B11, axis=1)[:, 0]
    return State(variables["cache"], logits_BV, lengths_B, jnp.zeros(len(lengths_B), bool))


# The state is not donated: the caller still reads `done_B` of the state that the next chunk starts from.
@partial(jax.jit, static_argnums=(0, 1, 2))
def decode_chunk(
    module: Any, sampling: Sampling, top: int, params: Any, state: State, keys_B: jax.Array, ends_E: jax.Array
) -> tuple[State, tuple[jax.Array, ...]]:
    """Choose CHUNK tokens, one after another, each read back into the network."""

    def one_token(state: State, _: None) -> tuple[State, tuple[jax.Array, ...]]:
        logprobs_BV = jax.nn.log_softmax(state.logits_BV)
        step_keys_B = jax.vmap(jax.random.fold_in)(keys_B, state.position_B)
        token_B = jnp.where(state.done_B, ends_E[0], choose(state.logits_BV, step_keys_B, sampling))
        logprob_B = jnp.take_along_axis(logprobs_BV, token_B[:, None], axis=-1)[:, 0]
        top_logprobs_BK, top_tokens_BK = jax.lax.top_k(logprobs_BV, top)
        logits_BTV, variables = module.apply(
            {"params": params, "cache": state.cache}, token_B[:, None], state.position_B[:, None], mutable=["cache"]
        )
        is_end_B = jnp.any(token_B[:, None] == ends_E[None], axis=-1)
        after = State(variables["cache"], logits_BTV[:, 0], state.position_B + 1, state.done_B | is_end_B)
        return after, (token_B, logprob_B, top_tokens_BK, top_logprobs_BK)

    state, out = jax.lax.scan(one_token, state, length=CHUNK)
    return state, tuple(jnp.moveaxis(array, 0, 1) for array in out)
