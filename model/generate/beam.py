"""Beam search: keep the most probable beginnings of a text, not just one (Graves 2012; Sutskever et al. 2014).

The whole search is one compiled loop on the device. What is kept, when a row is finished and how its texts are scored
follows Hugging Face `transformers`, so that the same weights give the same texts and scores.

Shapes: B rows, K beams, C candidates, T tokens that can be written, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from configs.schema import ConfigError
from model.generate.cache import row_axis, rows_of
from model.generate.decode import bucket, prefill, room_for

# What is known of a source is the same for all beams of a row, so it needs no shuffling.
SHARED = ("cross_attention", "alignment", "source_segments")


class Hypothesis(NamedTuple):
    """A text that was found; its tokens end with the one that ends texts, unless there was no more room."""

    tokens: list[int]
    # Sum of its tokens' log-probabilities (less what diversity takes), divided by their number to the power of the
    # length penalty.
    score: float


@flax.struct.dataclass
class Beams:
    """Everything that goes from one token to the next; rows of the cache are beams, K for each row of the batch."""

    cache: Any
    logits_BKV: jax.Array
    position_B: jax.Array  # Of the tokens that are chosen next.
    length: jax.Array  # Tokens written so far, int32 scalar.
    tokens_BKT: jax.Array
    logprob_BK: jax.Array  # Of all that a beam has written, best first; -inf where there is no beam.
    done_tokens_BKT: jax.Array  # Finished texts, best first.
    done_length_BK: jax.Array
    done_score_BK: jax.Array  # -inf where there is none.
    open_BG: jax.Array  # Whether a group may still find a better text.


OF_BEAMS = ("logits_BKV", "tokens_BKT", "logprob_BK", "done_tokens_BKT", "done_length_BK", "done_score_BK")


@flax.struct.dataclass
class Limits:
    """How a search is limited and judged; arrays, so that no value of them is compiled anew."""

    ends_E: jax.Array
    max_tokens: jax.Array
    length_penalty: jax.Array
    early_stopping: jax.Array
    never: jax.Array
    diversity: jax.Array


def beam_search(
    module: Any,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    beams: int,
    max_tokens: int,
    ends: Sequence[int],
    length_penalty: float = 1.0,
    sources: Sequence[Sequence[int]] | None = None,
    num_best: int = 1,
    early_stopping: bool | Literal["never"] = False,
    groups: int = 1,
    diversity: float = 0.0,
) -> list[list[Hypothesis]]:
    """The `num_best` best ways found to continue each prompt by at most `max_tokens` tokens, best first.

    In each step the 2 x `beams` likeliest continuations (more, if several tokens end a text) of a row's beams are
    candidates. Of those among the first `beams` that end, the best are kept; the best that go on are the next beams. A
    row is finished when it has `beams` texts and its best beam, judged as if it ended now, is no better than the worst
    of them: a heuristic, since with a positive penalty a longer text may still become better. A row's texts depend on
    its own prompt and source only.

    Beams can be shared out among groups that avoid each other (diverse beam search, Vijayakumar et al. 2016, algorithm
    1): each group searches by itself, but in each step a token loses `diversity` of its log-probability for every beam
    of the groups before that goes on with it ("Hamming diversity", section 4). What is lost stays lost, in the score
    too.

    Args:
      prompts: token ids, at least one per row; lengths may differ.
      beams: how many beginnings are kept; 1 is greedy.
      ends: the tokens that end a text.
      length_penalty: above 0 favours longer texts, 0 compares plain sums of log-probabilities.
      sources: token ids of what each row translates, for networks that do.
      early_stopping: True finishes a row as soon as it has `beams` texts; "never" only where no text could become
        better, whatever its length: with a positive penalty its beams are judged as if they were as long as can be.
      groups: of equally many beams.

    Raises:
      ValueError: an empty prompt or source.
      ConfigError: a prompt longer than a learned position table; a number of beams that cannot be.
    """
    if not prompts or not min(map(len, prompts)) or (sources is not None and not min(map(len, sources))):
        raise ValueError("A prompt needs at least one token.")
    if not 1 <= num_best <= beams:
        raise ConfigError(f"The {num_best} best of --beams={beams} texts: there must be at least that many beams.")
    if groups < 1 or beams % groups:
        raise ConfigError(f"--beam_groups={groups}: --beams={beams} do not fall into so many equal groups.")
    max_tokens = room_for(module.config, prompts, max_tokens)
    if not max_tokens:
        return [[Hypothesis([], 0.0)] for _ in prompts]
    state = prefill(module, params, prompts, max_tokens, ends[0], sources)
    limits = Limits(
        ends_E=jnp.array(ends, jnp.int32),
        max_tokens=jnp.int32(max_tokens),
        length_penalty=jnp.float32(length_penalty),
        early_stopping=jnp.bool_(early_stopping is True),
        never=jnp.bool_(early_stopping == "never"),
        diversity=jnp.float32(diversity),
    )
    found = _search(
        module, beams, groups, bucket(max_tokens), params, state.cache, state.logits_BV, state.position_B, limits
    )
    tokens_BKT, length_BK, score_BK = map(np.asarray, found)
    return [
        [
            Hypothesis(tokens_T[:length].tolist(), float(score))
            for tokens_T, length, score in zip(tokens_KT, length_K, score_K, strict=True)
            if np.isfinite(score)
        ][:num_best]
        for tokens_KT, length_K, score_K in zip(tokens_BKT, length_BK, score_BK, strict=True)
    ]


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _search(
    module: Any,
    beams: int,
    groups: int,
    room: int,
    params: Any,
    cache: Any,
    logits_BV: jax.Array,
    position_B: jax.Array,
    limits: Limits,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Finished texts [B,K,room], their lengths and their scores, best first."""
    B, V = logits_BV.shape
    shape = (B, beams)
    state = Beams(
        cache=rows_of(cache, jnp.repeat(jnp.arange(B), beams)),
        logits_BKV=jnp.broadcast_to(logits_BV[:, None], (*shape, V)),
        position_B=position_B,
        length=jnp.int32(0),
        tokens_BKT=jnp.zeros((*shape, room), jnp.int32),
        # Beams of a group that are equal would find the same texts.
        logprob_BK=jnp.full(shape, -jnp.inf).at[:, :: beams // groups].set(0.0),
        done_tokens_BKT=jnp.zeros((*shape, room), jnp.int32),
        done_length_BK=jnp.zeros(shape, jnp.int32),
        done_score_BK=jnp.full(shape, -jnp.inf),
        open_BG=jnp.ones((B, groups), bool),
    )

    def goes_on(state: Beams) -> jax.Array:
        return (state.length < limits.max_tokens) & jnp.any(state.open_BG)

    def read_and_choose(state: Beams) -> Beams:
        newest_BK = jax.lax.dynamic_index_in_dim(state.tokens_BKT, state.length - 1, axis=2, keepdims=False)
        logits_RTV, variables = module.apply(
            {"params": params, "cache": state.cache},
            newest_BK.reshape(-1, 1), jnp.repeat(state.position_B, beams)[:, None], mutable=["cache"],
        )  # fmt: skip
        logits_BKV = logits_RTV.reshape(B, beams, V)
        after = {"cache": variables["cache"], "logits_BKV": logits_BKV, "position_B": state.position_B + 1}
        return _choose(dataclasses.replace(state, **after), limits)

    state = jax.lax.while_loop(goes_on, read_and_choose, _choose(state, limits))
    done_score_BK, order_BK = jax.lax.top_k(state.done_score_BK, beams)  # Of all groups.
    return _take(state.done_tokens_BKT, order_BK), _take(state.done_length_BK, order_BK), done_score_BK


def _choose(state: Beams, limits: Limits) -> Beams:
    """Continue the beams by one token, one group after the other."""
    (B, K, V), G = state.logits_BKV.shape, state.open_BG.shape[1]
    taken_BV, chosen = jnp.zeros((B, V)), []
    for group in range(G):
        beams = slice(group * K // G, (group + 1) * K // G)
        own = {name: getattr(state, name)[:, beams] for name in OF_BEAMS}
        mine = dataclasses.replace(state, **own, open_BG=state.open_BG[:, group : group + 1])
        mine, parent_BK = _choose_in_group(mine, limits, limits.diversity * taken_BV)
        chosen.append((mine, parent_BK + beams.start))
        newest_BK = jax.lax.dynamic_index_in_dim(mine.tokens_BKT, state.length, axis=2, keepdims=False)
        goes_on_BK = (mine.open_BG & jnp.isfinite(mine.logprob_BK)).astype(jnp.float32)
        taken_BV = taken_BV.at[jnp.arange(B)[:, None], newest_BK].add(goes_on_BK)
    parent_BK = jnp.concatenate([parent_BK for _, parent_BK in chosen], axis=1)
    rows_R = (jnp.arange(B)[:, None] * K + parent_BK).reshape(-1)
    return dataclasses.replace(
        state,
        cache=_reordered(state.cache, rows_R),
        length=state.length + 1,
        **{
            name: jnp.concatenate([getattr(mine, name) for mine, _ in chosen], axis=1)
            for name in (*OF_BEAMS, "open_BG")
        },
    )


def _choose_in_group(state: Beams, limits: Limits, lost_BV: jax.Array) -> tuple[Beams, jax.Array]:
    """Continue the beams of a group, whose tokens lose so much; finish texts. Also which beam each one continues."""
    B, K, V = state.logits_BKV.shape
    logprob_BKV = jax.nn.log_softmax(state.logits_BKV) - lost_BV[:, None] + state.logprob_BK[:, :, None]
    # As many as cannot all end, as far as there are so many.
    count = min((1 + len(limits.ends_E)) * K, K * V)
    logprob_BC, choice_BC = jax.lax.top_k(logprob_BKV.reshape(B, K * V), count)
    parent_BC, token_BC = choice_BC // V, choice_BC % V
    tokens_BCT = _take(state.tokens_BKT, parent_BC)
    tokens_BCT = jax.lax.dynamic_update_index_in_dim(tokens_BCT, token_BC, state.length, axis=2)
    length = state.length + 1
    is_end_BC = jnp.any(token_BC[:, :, None] == limits.ends_E[None, None, :], axis=-1) | (length == limits.max_tokens)

    # Texts that end here and those that ended before, the best K of them; a finished row keeps what it has.
    counts_BC = is_end_BC & (jnp.arange(count) < K)[None, :] & state.open_BG
    scale = length.astype(jnp.float32) ** limits.length_penalty
    score_BC = jnp.where(counts_BC, logprob_BC / scale, -jnp.inf)
    done_score_BK, kept_BK = jax.lax.top_k(jnp.concatenate([state.done_score_BK, score_BC], axis=1), K)
    done_tokens_BKT = _take(jnp.concatenate([state.done_tokens_BKT, tokens_BCT], axis=1), kept_BK)
    length_BC = jnp.full(score_BC.shape, length)
    done_length_BK = _take(jnp.concatenate([state.done_length_BK, length_BC], axis=1), kept_BK)

    logprob_BK, going_BK = jax.lax.top_k(jnp.where(is_end_BC, -jnp.inf, logprob_BC), K)
    worst_B = done_score_BK[:, -1]  # -inf until there are K texts.
    longest = jnp.where(limits.never & (limits.length_penalty > 0), limits.max_tokens, length)
    improves_B = logprob_BK[:, 0] / longest.astype(jnp.float32) ** limits.length_penalty > worst_B
    full_B = jnp.isfinite(worst_B) & limits.early_stopping
    after = dataclasses.replace(
        state,
        tokens_BKT=_take(tokens_BCT, going_BK),
        logprob_BK=logprob_BK,
        done_tokens_BKT=done_tokens_BKT,
        done_length_BK=done_length_BK,
        done_score_BK=done_score_BK,
        open_BG=state.open_BG & (improves_B & ~full_B)[:, None],
    )
    return after, _take(parent_BC, going_BK)


def _take(values_BX: jax.Array, index_BK: jax.Array) -> jax.Array:
    """From each row, the entries of the second axis that `index_BK` names."""
    return jax.vmap(lambda values_X, index_K: values_X[index_K])(values_BX, index_BK)


def _reordered(cache: Any, rows_R: jax.Array) -> Any:
    """A cache made of these rows, but for what all beams of a row share."""

    def one(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return leaf if any(entry.key in SHARED for entry in path) else jnp.take(leaf, rows_R, row_axis(path))

    return jax.tree_util.tree_map_with_path(one, cache)
