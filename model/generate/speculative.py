"""Speculative decoding: guess some tokens cheaply, let the network read them all at once, keep those it would write.

A guess is kept with probability p/q, of the network's own probability and the guesser's; the first that is not is
replaced by a draw from what p has more than q. So a text has exactly the distribution that it has without guesses
(Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", section 2.3 and appendix A.1), and
a greedy text is the same text. Guesses come from a smaller network, or from what followed the last words earlier in the
text (Saxena 2023, "Prompt Lookup Decoding"), which guesses with probability 1.

Shapes: B rows, S slots of the cache, T tokens read at once, R tokens that can be written, V vocabulary, K tops.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from configs.derived import is_recurrent
from configs.schema import ConfigError
from model.generate.cache import PIECE
from model.generate.choose import Choice, History, Sampling, adjust, draw, filter_logits
from model.generate.decode import Chunk, Rows, bucket, place_keys, prefill, room_for

ROUNDS = 4  # Of guessing and reading per call of the compiled loop.
GRAM = 3  # The most tokens that are looked for in the text so far.
ACCEPTS, DRAWS, GUESSES = range(3)  # What the random numbers of a place are for.


@dataclass(frozen=True)
class Lookup:
    """Guess what followed the last tokens where they (up to three of them) stood before in the text."""

    count: int  # Guesses per round.


@dataclass(frozen=True)
class Draft:
    """Guess what a smaller network would write."""

    module: Any
    params: Any
    count: int


@dataclass
class Tally:
    """What became of the guesses, over all rows."""

    guessed: int = 0
    kept: int = 0
    rounds: int = 0  # How often a row was read.


@flax.struct.dataclass
class Progress:
    """Everything that goes from one round to the next."""

    cache: Any  # Has read all tokens of the text but the last.
    draft_cache: Any
    text_BS: jax.Array
    rows: Rows  # Without logits; `position_B` is the length of the text.
    logprobs_BR: jax.Array
    top_tokens_BRK: jax.Array
    top_logprobs_BRK: jax.Array
    kept_B: jax.Array
    rounds_B: jax.Array


def speculate(
    module: Any,
    params: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    guess: Lookup | Draft,
    *,
    max_tokens: int,
    seeds: Sequence[int],
    ends: Sequence[int],
    top: int = 0,
    tally: Tally | None = None,
) -> Iterator[Chunk]:
    """What `generate` yields, in chunks of as many tokens as all rows have; the arguments are the same.

    Args:
      guess: where guesses come from.
      tally: is filled in with what became of them.

    Raises:
      ValueError: an empty prompt.
      ConfigError: a network whose past cannot be taken back, or a draft with another vocabulary.
    """
    if not prompts or not min(map(len, prompts)):
        raise ValueError("A prompt needs at least one token.")
    draft = guess if isinstance(guess, Draft) else None
    _check(module, guess)
    max_tokens = room_for(module.config, prompts, max_tokens)
    if draft:
        max_tokens = room_for(draft.module.config, prompts, max_tokens)
    B, V = len(prompts), module.config.tokenizer.vocab_size
    top, room = min(top, V), bucket(max_tokens)
    rows = Rows.of(
        prompts, [sampling] * B, V,
        limits=[max_tokens] * B, seeds=seeds, ends=[ends] * B, tops=[top] * B,
    )  # fmt: skip
    text_BS = np.zeros((B, max(map(len, prompts)) + room + guess.count + 1), np.int32)
    for text_S, prompt in zip(text_BS, prompts, strict=True):
        text_S[: len(prompt)] = prompt
    state = Progress(
        cache=prefill(module, params, prompts, max_tokens, ends[0]).cache,
        draft_cache=prefill(draft.module, draft.params, prompts, max_tokens, ends[0]).cache if draft else None,
        text_BS=jnp.asarray(text_BS),
        rows=jax.tree.map(jnp.asarray, dataclasses.replace(rows, logits_BV=None)),
        logprobs_BR=jnp.zeros((B, room)),
        top_tokens_BRK=jnp.zeros((B, room, top), jnp.int32),
        top_logprobs_BRK=jnp.zeros((B, room, top)),
        kept_B=jnp.zeros(B, jnp.int32),
        rounds_B=jnp.zeros(B, jnp.int32),
    )
    shown, lengths_B1 = 0, np.array([[len(prompt)] for prompt in prompts])
    while shown < max_tokens:
        state = _rounds(module, draft and draft.module, guess.count, params, draft and draft.params, state)
        written_B, done_B = (np.asarray(x) for x in (state.rows.written_B, state.rows.done_B))
        upto = int(np.max(written_B) if done_B.all() else np.min(written_B[~done_B]))
        places_BC = lengths_B1 + np.arange(shown, upto)[None]
        tokens_BC = np.take_along_axis(np.asarray(state.text_BS), places_BC, axis=1)
        over_BC = np.arange(shown, upto)[None] >= written_B[:, None]
        shared = (state.logprobs_BR, state.top_tokens_BRK, state.top_logprobs_BRK)
        yield Chunk(np.where(over_BC, ends[0], tokens_BC), *(np.asarray(x)[:, shown:upto] for x in shared))
        shown = upto
        if tally is not None:
            tally.kept, tally.rounds = int(np.sum(state.kept_B)), int(np.sum(state.rounds_B))
            tally.guessed = tally.rounds * guess.count
        if done_B.all():
            return


def _check(module: Any, guess: Lookup | Draft) -> None:
    if not 1 <= guess.count < PIECE:  # A ring has room for so many wrong ones.
        raise ConfigError(f"Guesses per round: {guess.count}; there must be 1 to {PIECE - 1}.")
    for network in (module, guess.module) if isinstance(guess, Draft) else (module,):
        config = network.config
        if is_recurrent(config) or config.model.attention in ("linear", "delta") or config.model.network != "decoder":
            raise ConfigError(
                "Tokens can be guessed ahead only for a decoder that keeps each token by itself, so that wrong guesses "
                f"can be taken back; this one is {config.model.network} with {config.model.attention} attention."
            )
    if isinstance(guess, Draft):
        ours, theirs = (network.config.tokenizer.vocab_size for network in (module, guess.module))
        if ours != theirs:
            raise ConfigError(f"--draft: its vocabulary has {theirs} tokens, that of --checkpoint {ours}.")


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=5)
def _rounds(module: Any, draft: Any, count: int, params: Any, draft_params: Any, state: Progress) -> Progress:
    """ROUNDS rounds, or fewer if all rows are done."""

    def one_round(state: Progress) -> Progress:
        if draft is None:
            guess_BT, shares, draft_cache = look_up(state.text_BS, state.rows.position_B, count), None, None
        else:
            guess_BT, shares, draft_cache = _draft(draft, count, draft_params, state)
        newest_B1 = jnp.take_along_axis(state.text_BS, state.rows.position_B[:, None] - 1, axis=1)
        logits_BTV, cache = _read(
            module, params, state.cache, jnp.concatenate([newest_B1, guess_BT], axis=1), state.rows
        )
        return _settle(dataclasses.replace(state, cache=cache, draft_cache=draft_cache), logits_BTV, guess_BT, shares)

    def goes_on(carry: tuple[jax.Array, Progress]) -> jax.Array:
        return (carry[0] < ROUNDS) & ~jnp.all(carry[1].rows.done_B)

    return jax.lax.while_loop(goes_on, lambda carry: (carry[0] + 1, one_round(carry[1])), (jnp.int32(0), state))[1]


def _read(module: Any, params: Any, cache: Any, tokens_BT: jax.Array, rows: Rows) -> tuple[jax.Array, Any]:
    """Logits [B,T,V] of what follows the text's newest token, and what is guessed behind it."""
    places_BT = rows.position_B[:, None] - 1 + jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None]
    goes_BT = jnp.broadcast_to(~rows.done_B[:, None], places_BT.shape).astype(jnp.int32)
    logits_BTV, variables = module.apply(
        {"params": params, "cache": cache}, tokens_BT, places_BT, goes_BT, mutable=["cache"]
    )
    return logits_BTV, variables["cache"]


def look_up(text_BS: jax.Array, length_B: jax.Array, count: int) -> jax.Array:
    """What followed the place most like the end of each text, [B,count]: the last one with most of GRAM tokens alike.

    What lies behind the end is guessed to repeat what lies between the two.
    """

    def one(text_S: jax.Array, length: jax.Array) -> jax.Array:
        places_S = jnp.arange(len(text_S), dtype=jnp.int32)
        alike_S, same_S = jnp.zeros_like(places_S), jnp.ones_like(places_S, bool)
        for back in range(GRAM):
            earlier_S = jnp.where(places_S >= back, jnp.roll(text_S, back), -1)
            same_S &= earlier_S == text_S[jnp.maximum(length - 1 - back, 0)]
            alike_S += same_S.astype(jnp.int32)
        rank_S = jnp.where(places_S < length - 1, alike_S * len(text_S) + places_S, -1)
        found = jnp.argmax(rank_S).astype(jnp.int32)
        found = jnp.where(length > 1, found, -1)  # A text of one token repeats it.
        return text_S[found + 1 + jnp.arange(count, dtype=jnp.int32) % (length - 1 - found)]

    return jax.vmap(one)(text_BS, length_B)


def _draft(draft: Any, count: int, params: Any, state: Progress) -> tuple[jax.Array, jax.Array, Any]:
    """Guesses [B,count], the distribution [count,B,V] that each was drawn from, and the cache with all of them."""
    rows = state.rows

    def one(carry: Any, number: jax.Array) -> Any:
        cache, token_B, history = carry
        at = dataclasses.replace(rows, position_B=rows.position_B + number)
        logits_BTV, cache = _read(draft, params, cache, token_B[:, None], at)
        share_BV = distribution(logits_BTV[:, 0], rows.choice, history, rows.written_B + number)
        token_B = jax.vmap(draw)(_keys(rows, number, GUESSES), jnp.log(share_BV))
        return (cache, token_B, history.add(token_B, jnp.ones_like(token_B))), (token_B, share_BV)

    newest_B = jnp.take_along_axis(state.text_BS, rows.position_B[:, None] - 1, axis=1)[:, 0]
    start = (state.draft_cache, newest_B, rows.history)
    # One more than is used: the last guess has to be read, in case that it is kept.
    (cache, _, _), (guess_TB, share_TBV) = jax.lax.scan(one, start, jnp.arange(count + 1, dtype=jnp.int32))
    return guess_TB[:count].T, share_TBV[:count], cache


def distribution(logits_BV: jax.Array, choice: Choice, history: History, place_B: jax.Array) -> jax.Array:
    """The probabilities [B,V] with which `choose` takes a token; of a greedy row, 1 and zeros."""
    logits_BV = adjust(logits_BV, choice, history)
    forced_B, is_forced_B = choice.forced_at(place_B)
    certain_B = jnp.where(is_forced_B, forced_B, jnp.argmax(logits_BV, axis=-1))
    certain_BV = jax.nn.one_hot(certain_B, logits_BV.shape[-1])
    draws_B = jnp.asarray(choice.temperature_B > 0) & ~is_forced_B
    return jax.lax.cond(
        jnp.any(draws_B),
        lambda: jnp.where(draws_B[:, None], jax.nn.softmax(filter_logits(logits_BV, choice)), certain_BV),
        lambda: certain_BV,
    )


def _keys(rows: Rows, number: jax.Array, purpose: int) -> jax.Array:
    """A key per row for the place that lies `number` tokens behind its text."""
    keys_B = place_keys(rows.seed_B, rows.position_B + number)
    return jax.vmap(lambda key: jax.random.fold_in(key, purpose))(keys_B)


def _settle(state: Progress, logits_BTV: jax.Array, guess_BT: jax.Array, shares: jax.Array | None) -> Progress:
    """Keep guesses as far as they are accepted, and draw one token more."""
    rows, (B, T, V), top = state.rows, logits_BTV.shape, state.top_tokens_BRK.shape[2]
    row_B = jnp.arange(B)

    def one(carry: Any, at: Any) -> Any:
        history, open_B, done_B = carry
        number, logits_BV, guess_B, share_BV = at
        wanted_BV = distribution(logits_BV, rows.choice, history, rows.written_B + number)
        is_guess = number < T - 1
        share_BV = jax.nn.one_hot(guess_B, V) if share_BV is None else share_BV
        share_BV = jnp.where(is_guess, share_BV, 0.0)
        uniform_B = jax.vmap(jax.random.uniform)(_keys(rows, number, ACCEPTS))
        accepted_B = (uniform_B * share_BV[row_B, guess_B] < wanted_BV[row_B, guess_B]) & is_guess
        rest_BV = jnp.maximum(wanted_BV - share_BV, 0.0)
        # Where both are the same, rounding may leave nothing; then no guess was refused.
        rest_BV = jnp.where(jnp.any(rest_BV > 0, axis=-1, keepdims=True), rest_BV, wanted_BV)
        drawn_B = jax.lax.cond(
            jnp.any(jnp.asarray(rows.choice.temperature_B) > 0),
            lambda: jax.vmap(draw)(_keys(rows, number, DRAWS), jnp.log(rest_BV)),
            lambda: jnp.argmax(rest_BV, axis=-1).astype(jnp.int32),  # Of a greedy row, a single token is left.
        )
        token_B = jnp.where(accepted_B, guess_B, drawn_B)

        logprobs_BV = jax.nn.log_softmax(logits_BV)
        top_logprobs_BK, top_tokens_BK = jax.lax.top_k(logprobs_BV, top)
        out = token_B, logprobs_BV[row_B, token_B], top_tokens_BK, top_logprobs_BK, open_B, accepted_B & open_B
        over_B = jnp.any(token_B[:, None] == rows.ends_BE, axis=-1) | (rows.written_B + number + 1 >= rows.limit_B)
        history = history.add(token_B, open_B.astype(jnp.int32))
        return (history, open_B & accepted_B & ~over_B, done_B | (open_B & over_B)), out

    places_T = jnp.arange(T, dtype=jnp.int32)
    guess_TB = jnp.pad(guess_BT, ((0, 0), (0, 1))).T
    shares = None if shares is None else jnp.pad(shares, ((0, 1), (0, 0), (0, 0)))
    start = (rows.history, ~rows.done_B, rows.done_B)
    (history, _, done_B), out = jax.lax.scan(one, start, (places_T, jnp.moveaxis(logits_BTV, 1, 0), guess_TB, shares))
    token_BT, logprob_BT, top_BTK, top_logprob_BTK, counts_BT, kept_BT = (jnp.moveaxis(x, 0, 1) for x in out)
    number_B = jnp.sum(counts_BT, axis=1, dtype=jnp.int32)

    def put(into: jax.Array, start_B: jax.Array, new_BT: jax.Array) -> jax.Array:
        place_BT = jnp.where(counts_BT, start_B[:, None] + places_T[None], into.shape[1])
        return into.at[row_B[:, None], place_BT].set(new_BT, mode="drop")

    return dataclasses.replace(
        state,
        text_BS=put(state.text_BS, rows.position_B, token_BT),
        rows=dataclasses.replace(
            rows, position_B=rows.position_B + number_B, written_B=rows.written_B + number_B, done_B=done_B,
            history=history,
        ),
        logprobs_BR=put(state.logprobs_BR, rows.written_B, logprob_BT),
        top_tokens_BRK=put(state.top_tokens_BRK, rows.written_B, top_BTK),
        top_logprobs_BRK=put(state.top_logprobs_BRK, rows.written_B, top_logprob_BTK),
        kept_B=state.kept_B + jnp.sum(kept_BT, axis=1, dtype=jnp.int32),
        rounds_B=state.rounds_B + jnp.where(rows.done_B, 0, 1),
    )  # fmt: skip
