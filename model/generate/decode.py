"""Prefill once, then one compiled loop with a KV cache: no Python per token.

The loop runs in chunks so that text can be shown while the next chunk is computed, and so that the engine can let texts
join and leave between chunks.

Shapes: B rows, T prompt length, S cache slots, V vocabulary, C tokens of a chunk, E tokens that end a text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from configs.check import check_length
from configs.derived import longest_text, translates
from configs.schema import Config
from model.apart import are_apart
from model.generate.cache import PIECE, empty_cache, ring_slots, spread
from model.generate.choose import Choice, History, Sampling, choose
from model.generate.grammar import Matcher, masks
from model.sharding import constrain
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
class Prefilled:
    """A cache that has read the prompts, and what the network expects next."""

    cache: Any
    logits_BV: jax.Array
    position_B: jax.Array  # Of the token that is chosen next.


@flax.struct.dataclass
class Rows:
    """What is known of each text, besides its cache; all of it are arrays, so that one program serves all settings."""

    logits_BV: Any
    position_B: Any  # Of the token that is chosen next.
    written_B: Any  # Tokens written so far.
    limit_B: Any  # The most tokens to write.
    done_B: Any  # Nothing more is written; also where there is no text.
    seed_B: Any  # uint32
    ends_BE: Any  # Tokens that end the text, filled up with -1.
    top_B: Any  # How many of the likeliest tokens are asked for.
    choice: Choice
    history: History

    @staticmethod
    def of(
        prompts: Sequence[Sequence[int]],
        samplings: Sequence[Sampling],
        vocabulary: int,
        *,
        limits: Sequence[int],
        seeds: Sequence[int],
        ends: Sequence[Sequence[int]],
        tops: Sequence[int],
        max_ends: int = 1,
        max_forced: int = 0,
    ) -> Rows:
        """Texts of which nothing is written yet, as arrays of the host; the logits are still to come.

        Raises:
          ConfigError: a setting names a token that the vocabulary does not have.
        """
        ends_BE = np.full((len(prompts), max(max_ends, *map(len, ends))), -1, np.int32)
        for row, tokens in enumerate(ends):
            ends_BE[row, : len(tokens)] = tokens
        return Rows(
            logits_BV=np.zeros((len(prompts), vocabulary), np.float32),
            position_B=np.array([len(prompt) for prompt in prompts], np.int32),
            written_B=np.zeros(len(prompts), np.int32),
            limit_B=np.array(limits, np.int32),
            done_B=np.array(limits, np.int32) <= 0,
            seed_B=np.array([seed % 2**32 for seed in seeds], np.uint32),
            ends_BE=ends_BE,
            top_B=np.array(tops, np.int32),
            choice=Choice.of(samplings, vocabulary, max_forced),
            history=History.of(prompts, vocabulary),
        )


def place_keys(seed_B: jax.Array, position_B: jax.Array) -> jax.Array:
    """A key per row for a place in its text: of its own seed, so that no row depends on its neighbours."""
    return jax.vmap(lambda seed, position: jax.random.fold_in(jax.random.key(seed), position))(seed_B, position_B)


def shared_by_rows(rows: Rows) -> Rows:
    """Tell the compiler that each device has rows of its own, with the whole vocabulary; outside of a mesh, nothing."""
    return jax.tree.map(lambda x: constrain(x, "rows", *["width"] * (x.ndim - 1)), rows)


@flax.struct.dataclass
class State:
    """Everything that goes from one token to the next."""

    cache: Any
    rows: Rows


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
    matchers: Sequence[Matcher] | None = None,
) -> Iterator[Chunk]:
    """Continue each prompt by at most `max_tokens` tokens, chunk by chunk, until every row has written one of `ends`.

    A text also ends where a learned position table does.

    Args:
      prompts: token ids, at least one per row; lengths may differ.
      seeds: one per row; a row's text depends on its own prompt and seed only.
      ends: ids of the tokens that end a text; a row repeats the first of them once it is done.
      top: how many of the likeliest tokens to report at each place.
      sources: token ids of what each row translates, for networks that do.
      matchers: the grammar of each row; the chunks then have one token each, since the host says which may come next.

    Raises:
      ValueError: an empty prompt.
      ConfigError: a prompt longer than a learned position table; a setting of a token that is not there.
    """
    if not prompts or not min(map(len, prompts)) or (sources is not None and not min(map(len, sources))):
        raise ValueError("A prompt needs at least one token.")
    max_tokens = room_for(module.config, prompts, max_tokens)
    B = len(prompts)
    rows = Rows.of(
        prompts, [sampling] * B, module.config.tokenizer.vocab_size,
        limits=[max_tokens] * B, seeds=seeds, ends=[ends] * B, tops=[top] * B,
    )  # fmt: skip
    read = prefill(module, params, prompts, max_tokens, ends[0], sources)
    state = State(read.cache, jax.tree.map(jnp.asarray, dataclasses.replace(rows, logits_BV=read.logits_BV)))

    if matchers:
        yield from _generate_by_grammar(module, params, state, matchers, max_tokens=max_tokens, top=top)
        return
    ahead: tuple[State, Written] | None = None
    for start in range(0, max_tokens, CHUNK):
        state, written = ahead or decode_chunk(module, CHUNK, top, params, state)
        # The next chunk is on its way before this one is read, unless this is the last.
        ahead = decode_chunk(module, CHUNK, top, params, state) if start + CHUNK < max_tokens else None
        yield Chunk(*(np.asarray(array)[:, : max_tokens - start] for array in written[:4]))
        if bool(np.all(np.asarray(written.done_B))):
            return


def _generate_by_grammar(
    module: Any, params: Any, state: State, matchers: Sequence[Matcher], *, max_tokens: int, top: int
) -> Iterator[Chunk]:
    V = module.config.tokenizer.vocab_size
    for _ in range(max_tokens):
        state, written = decode_chunk(module, 1, top, params, state, masks(matchers, V))
        chunk = Chunk(*(np.asarray(array) for array in written[:4]))
        for matcher, token in zip(matchers, chunk.tokens_BC[:, 0].tolist(), strict=True):
            matcher.take(token)
        yield chunk
        if bool(np.all(np.asarray(written.done_B))):
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
) -> Prefilled:
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
        source = Source.of(jnp.asarray(padded(sources, end)), jnp.array([len(ids) for ids in sources], jnp.int32))
        source_slots = source.tokens_BS.shape[1]
    slots = bucket(int(lengths_B.max()) + max_tokens)
    ring = ring_slots(module.config, slots, are_apart(params))
    cache = empty_cache(module.config, len(prompts), slots, source_slots, ring)
    read = _prefill_by_pieces if ring else _prefill
    return read(module, params, cache, padded(prompts, end), lengths_B, source)


def bucket(length: int) -> int:
    """`length` rounded up to a size that things are compiled for."""
    return -(-length // BUCKET) * BUCKET


def padded(rows: Sequence[Sequence[int]], end: int) -> np.ndarray:
    """Rows of tokens as one array, [B,T] int32, filled up with `end` to a size that things are compiled for."""
    tokens_BT = np.full((len(rows), bucket(max(map(len, rows)))), end, np.int32)
    for tokens_T, row in zip(tokens_BT, rows, strict=True):
        tokens_T[: len(row)] = row
    return tokens_BT


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _prefill(
    module: Any, params: Any, cache: Any, tokens_BT: jax.Array, lengths_B: jax.Array, source: Source | None
) -> Prefilled:
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape)
    segments_BT = (positions_BT < lengths_B[:, None]).astype(jnp.int32)
    logits_BTV, variables = module.apply(
        {"params": params, "cache": cache}, tokens_BT, positions_BT, segments_BT, source=source, mutable=["cache"]
    )
    last_B11 = (lengths_B - 1)[:, None, None]
    logits_BV = jnp.take_along_axis(logits_BTV, last_B11, axis=1)[:, 0]
    return Prefilled(variables["cache"], logits_BV, lengths_B)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _prefill_by_pieces(
    module: Any, params: Any, cache: Any, tokens_BT: jax.Array, lengths_B: jax.Array, source: Source | None
) -> Prefilled:
    """The same, PIECE tokens at a time: more would push each other out of a ring."""
    B, T = tokens_BT.shape
    tokens_BT = jnp.pad(tokens_BT, ((0, 0), (0, -T % PIECE)))

    def read(carry: tuple[Any, jax.Array], start: jax.Array) -> tuple[tuple[Any, jax.Array], None]:
        cache, logits_BV = carry
        tokens_BC = jax.lax.dynamic_slice_in_dim(tokens_BT, start, PIECE, 1)
        places_BC = jnp.broadcast_to(start + jnp.arange(PIECE, dtype=jnp.int32), (B, PIECE))
        segments_BC = (places_BC < lengths_B[:, None]).astype(jnp.int32)
        logits_BCV, variables = module.apply(
            {"params": params, "cache": cache}, tokens_BC, places_BC, segments_BC, source=source, mutable=["cache"]
        )
        last_B = lengths_B - 1 - start
        last_BV = jnp.take_along_axis(logits_BCV, jnp.clip(last_B, 0, PIECE - 1)[:, None, None], axis=1)[:, 0]
        is_here_B1 = ((last_B >= 0) & (last_B < PIECE))[:, None]
        return (variables["cache"], jnp.where(is_here_B1, last_BV, logits_BV)), None

    nothing_BV = jnp.zeros((B, module.config.tokenizer.vocab_size), jnp.float32)
    starts = jnp.arange(0, tokens_BT.shape[1], PIECE, dtype=jnp.int32)
    (cache, logits_BV), _ = jax.lax.scan(read, (cache, nothing_BV), starts)
    return Prefilled(cache, logits_BV, lengths_B)


class Written(NamedTuple):
    """What a chunk of the loop wrote, as arrays of the device; see `Chunk`."""

    tokens_BC: jax.Array
    logprobs_BC: jax.Array
    top_tokens_BCK: jax.Array
    top_logprobs_BCK: jax.Array
    done_B: jax.Array  # After the chunk.


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def decode_chunk(
    module: Any,
    length: int,
    top: int,
    params: Any,
    state: State,
    allowed_BW: jax.Array | np.ndarray | None = None,
    steps: np.ndarray | None = None,
) -> tuple[State, Written]:
    """Choose `length` tokens, one after another, each read back into the network.

    A row that is done repeats the first token that ends it, and reads nothing more.

    Args:
      allowed_BW: a mask of `model/generate/grammar.py`. It is that of the next token: where it forbids any, only that
        one may be chosen.
      steps: int32 scalar; if given, only so many of the tokens are chosen, by the same program, and the rest are zeros.
    """

    def one_token(number: jax.Array, carry: tuple[State, tuple[jax.Array, ...]]) -> Any:
        state, written = carry
        rows = state.rows
        logprobs_BV = jax.nn.log_softmax(rows.logits_BV)
        token_B = choose(
            rows.logits_BV,
            place_keys(rows.seed_B, rows.position_B),
            rows.choice,
            rows.history,
            rows.written_B,
            allowed_BW,
        )
        token_B = jnp.where(rows.done_B, jnp.maximum(rows.ends_BE[:, 0], 0), token_B)
        logprob_B = jnp.take_along_axis(logprobs_BV, token_B[:, None], axis=-1)[:, 0]
        top_logprobs_BK, top_tokens_BK = _likeliest(logprobs_BV, top, rows.top_B)
        goes_B = 1 - rows.done_B.astype(jnp.int32)
        logits_BTV, variables = module.apply(
            {"params": params, "cache": state.cache},
            token_B[:, None], rows.position_B[:, None], goes_B[:, None], mutable=["cache"],
        )  # fmt: skip
        written_B = rows.written_B + goes_B
        is_end_B = jnp.any(token_B[:, None] == rows.ends_BE, axis=-1) | (written_B >= rows.limit_B)
        after = dataclasses.replace(
            rows,
            logits_BV=logits_BTV[:, 0],
            position_B=rows.position_B + goes_B,
            written_B=written_B,
            done_B=rows.done_B | is_end_B,
            history=rows.history.add(token_B, goes_B),
        )
        new = token_B, logprob_B, top_tokens_BK, top_logprobs_BK
        written = tuple(all_C.at[number].set(one) for all_C, one in zip(written, new, strict=True))
        return State(spread(variables["cache"]), shared_by_rows(after)), written

    shape, top = (length, len(state.rows.done_B)), min(top, state.rows.logits_BV.shape[1])
    nothing = tuple(jnp.zeros((*shape, *tops), dtype) for tops in ((), (top,)) for dtype in (jnp.int32, jnp.float32))
    state, out = jax.lax.fori_loop(0, length if steps is None else steps, one_token, (state, nothing))
    tokens_BC, logprobs_BC, top_BCK, top_logprobs_BCK = (jnp.moveaxis(array, 0, 1) for array in out)
    return state, Written(tokens_BC, logprobs_BC, top_BCK, top_logprobs_BCK, state.rows.done_B)


def _likeliest(logprobs_BV: jax.Array, top: int, asked_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities and tokens [B,top], best first; zeros if no row asks for any."""
    top = min(top, logprobs_BV.shape[1])
    B, find = logprobs_BV.shape[0], lambda: tuple(jax.lax.top_k(logprobs_BV, top))
    nothing = jnp.zeros((B, top), logprobs_BV.dtype), jnp.zeros((B, top), jnp.int32)
    return jax.lax.cond(jnp.any(asked_B > 0), find, lambda: nothing) if top else nothing
