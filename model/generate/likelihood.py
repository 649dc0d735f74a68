"""How likely given continuations of given contexts are, many at once; what several texts begin with is read once.

Three levels: what the contexts of a group share is read as one row; the rest of each context is read from copies of
that row's cache; its continuations are read from copies of the context's. Each level is batched by length and padded
to a few sizes, so that few programs are compiled.

Shapes: B rows, T tokens of a piece, n tokens of a continuation, S cache slots, V vocabulary, D width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from configs.check import check_length
from configs.convert import override
from configs.derived import fills_in, translates
from configs.schema import ConfigError
from model import build
from model.generate.cache import empty_cache, rows_of
from model.transformer import head_logits

Tokens = tuple[int, ...]
LEAST_SHARED = 32  # Tokens; a shorter beginning is read again with each text, which costs less than to copy it.
ROWS = 32  # The most texts that are read at once.
CACHED = 16384  # Tokens that the cache of these has room for, if one text is no longer.
PLACES = 64  # Places whose logits exist at the same time.


class Likelihood(NamedTuple):
    """What a network says of a continuation: the natural logarithm of each token's probability."""

    logprobs: tuple[float, ...]
    greedy: bool  # Whether each token was the likeliest at its place.

    @property
    def logprob(self) -> float:
        """Of the whole continuation."""
        return float(np.sum(self.logprobs))


class Group(NamedTuple):
    """Contexts whose first `shared` tokens are the same."""

    shared: int
    contexts: list[Tokens]


def likelihoods(
    module: Any,
    params: Any,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    on_done: Callable[[int, int], object] = lambda done, total: None,
) -> list[Likelihood]:
    """How likely each continuation is after its context, in the order of `pairs`.

    Args:
      pairs: (context, continuation), token ids, each at least one.
      on_done: called with how many pairs are done, and how many there are.

    Raises:
      ConfigError: a text longer than a learned position table; a network that translates, or fills in what is masked.
    """
    config = module.config
    if fills_in(config) or translates(config):
        raise ConfigError(
            f"--model.network={config.model.network} does not continue texts: only networks that do can be asked how "
            f"likely a continuation is."
        )
    asked: dict[Tokens, dict[Tokens, list[int]]] = {}
    for index, (context, continuation) in enumerate(pairs):
        if not context or not continuation:
            raise ValueError("A context and a continuation need at least one token each.")
        check_length(config, len(context) + len(continuation) - 1)
        asked.setdefault(tuple(context), {}).setdefault(tuple(continuation), []).append(index)
    # Layers that are looped over compile in a tenth of the time, and cost nothing where many tokens are read at once.
    module = build(override(config, {"model.layers": "scan"}))
    found: list[Any] = [None] * len(pairs)
    done = 0
    for group in grouped(list(asked)):
        for context, continuation, likelihood in _of_group(module, params, group, asked):
            for index in asked[context][continuation]:
                found[index] = likelihood
            done += len(asked[context][continuation])
            on_done(done, len(pairs))
    return found


def grouped(contexts: Sequence[Tokens]) -> list[Group]:
    """Contexts in groups with a common beginning, chosen so that the fewest tokens are read; different contexts."""
    contexts = sorted(contexts)
    shared = [_shared(before, after) for before, after in itertools.pairwise(contexts)]
    groups = [Group(length, contexts[start:end]) for start, end, length in _best(contexts, shared, 0, len(contexts))[1]]
    alone = [context for group in groups if len(group.contexts) == 1 for context in group.contexts]
    together = [group for group in groups if len(group.contexts) > 1]
    return together + ([Group(0, alone)] if alone else [])


def _best(contexts: list[Tokens], shared: list[int], start: int, end: int) -> tuple[int, list[tuple[int, int, int]]]:
    """(tokens saved, groups as start, end and shared length) for contexts[start:end], which are sorted.

    Either all of them are a group, or they are parted wherever they share the least (the branches of a trie).
    """
    if end - start < 2:
        return 0, [(start, end, 0)]
    least = min(shared[start : end - 1])
    saved_together = (end - start - 1) * least if least >= LEAST_SHARED else 0
    cuts = [start, *(place + 1 for place in range(start, end - 1) if shared[place] == least), end]
    saved_apart, apart = 0, []
    for left, right in itertools.pairwise(cuts):
        saved, groups = _best(contexts, shared, left, right)
        saved_apart += saved
        apart += groups
    return (saved_together, [(start, end, least)]) if saved_together > saved_apart else (saved_apart, apart)


def _shared(a: Tokens, b: Tokens) -> int:
    """How many tokens both begin with; at least one is left of each."""
    most = min(len(a), len(b)) - 1
    return next((place for place in range(most) if a[place] != b[place]), most)


def _of_group(
    module: Any, params: Any, group: Group, asked: dict[Tokens, dict[Tokens, list[int]]]
) -> Iterator[tuple[Tokens, Tokens, Likelihood]]:
    """The likelihood of each continuation of a group's contexts."""
    longest = {context: len(context) + max(map(len, asked[context])) - 1 for context in group.contexts}
    prefix = None
    if group.shared:
        slots = size_of(max(longest.values()))
        prefix = empty_cache(module.config, 1, slots)
        prefix, _ = _read(module, params, prefix, *_padded([group.contexts[0][: group.shared]], 1), np.int32(0))
    for contexts, slots in _batches(group.contexts, longest, size_of(max(longest.values())) if group.shared else None):
        rows = size_of(len(contexts), 1)
        cache = (
            empty_cache(module.config, rows, slots) if prefix is None else rows_of(prefix, jnp.zeros(rows, jnp.int32))
        )
        rest = [context[group.shared :] for context in contexts]
        cache, logits_BV = _read(module, params, cache, *_padded(rest, rows), np.int32(group.shared))
        todo = [(row, text) for row, context in enumerate(contexts) for text in asked[context]]
        todo.sort(key=lambda item: len(item[1]))
        most = max(1, min(ROWS, CACHED // slots))
        for first in range(0, len(todo), most):
            some = todo[first : first + most]
            count = size_of(len(some), 1)
            rows_R = np.array([row for row, _ in some] + [0] * (count - len(some)), np.int32)
            starts_R = np.array([len(contexts[row]) for row in rows_R], np.int32)
            tokens_Rn, lengths_R = _padded([text for _, text in some], count, least=1)
            logprobs_Rn, greedy_Rn = jax.device_get(
                _follow(module, params, cache, logits_BV, rows_R, tokens_Rn, lengths_R, starts_R)
            )
            for (row, text), logprobs_n, greedy_n in zip(some, logprobs_Rn, greedy_Rn, strict=False):
                logprobs = tuple(map(float, logprobs_n[: len(text)]))
                yield contexts[row], text, Likelihood(logprobs, bool(greedy_n[: len(text)].all()))


def _batches(
    contexts: list[Tokens], longest: dict[Tokens, int], slots: int | None
) -> Iterator[tuple[list[Tokens], int]]:
    """Contexts that are read at once, by length, and the slots that each has in the cache."""
    contexts = sorted(contexts, key=lambda context: (size_of(longest[context]), len(context)))
    while contexts:
        size = slots or size_of(longest[contexts[0]])
        most = max(1, min(ROWS, CACHED // size))
        batch = [context for context in contexts[:most] if size_of(longest[context]) <= size]
        yield batch, size
        contexts = contexts[len(batch) :]


def size_of(length: int, least: int = 16) -> int:
    """`length` rounded up to a power of two or one and a half of it, so that few sizes are compiled for."""
    size = least
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 and size > 1 else size // 3 * 4 if size > 1 else 2
    return size


def _padded(rows: Sequence[Tokens], count: int, least: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Rows of tokens as one array [count,T] int32, and their lengths [count] int32; the first row fills it up."""
    rows = [*rows, *[rows[0]] * (count - len(rows))]
    tokens_BT = np.zeros((count, size_of(max(map(len, rows)), least)), np.int32)
    for tokens_T, row in zip(tokens_BT, rows, strict=True):
        tokens_T[: len(row)] = row
    return tokens_BT, np.array([len(row) for row in rows], np.int32)


def _hidden(
    module: Any, params: Any, cache: Any, tokens_BT: jax.Array, lengths_B: jax.Array, starts_B: jax.Array
) -> tuple[Any, jax.Array]:
    places_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape)
    real_BT = (places_BT < lengths_B[:, None]).astype(jnp.int32)
    hidden_BTD, variables = module.apply(
        {"params": params, "cache": cache}, tokens_BT, starts_B[:, None] + places_BT, real_BT, head=False,
        mutable=["cache"],
    )  # fmt: skip
    return variables["cache"], hidden_BTD


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _read(
    module: Any, params: Any, cache: Any, tokens_BT: jax.Array, lengths_B: jax.Array, start: jax.Array
) -> tuple[Any, jax.Array]:
    """Read texts into the cache from position `start` on; the logits [B,V] are those of what follows."""
    starts_B = jnp.broadcast_to(start, lengths_B.shape)
    cache, hidden_BTD = _hidden(module, params, cache, tokens_BT, lengths_B, starts_B)
    last_B1D = jnp.take_along_axis(hidden_BTD, (lengths_B - 1)[:, None, None], axis=1)
    return cache, head_logits(module.config, params, last_B1D)[:, 0]


@partial(jax.jit, static_argnums=0)
def _follow(
    module: Any,
    params: Any,
    cache: Any,
    logits_BV: jax.Array,
    rows_R: jax.Array,
    tokens_Rn: jax.Array,
    lengths_R: jax.Array,
    starts_R: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The log-probability of each token of continuations of the cache's rows `rows_R`, and whether it was likeliest."""
    first_R1, likeliest_R1 = _judged(logits_BV[rows_R][:, None], tokens_Rn[:, :1])
    if tokens_Rn.shape[1] == 1:
        return first_R1, likeliest_R1
    # What is read is all but the last token, and padding in its place.
    _, hidden_RnD = _hidden(module, params, rows_of(cache, rows_R), tokens_Rn, lengths_R - 1, starts_R)
    inputs = hidden_RnD[:, :-1], tokens_Rn[:, 1:]
    places = inputs[1].shape[1]
    parts = -(-places // PLACES)
    if parts == 1:
        rest, likeliest = _judged(head_logits(module.config, params, inputs[0]), inputs[1])
    else:

        def split(x_Rn: jax.Array) -> jax.Array:
            x_Rn = jnp.pad(x_Rn, [(0, 0), (0, parts * PLACES - places)] + [(0, 0)] * (x_Rn.ndim - 2))
            return jnp.moveaxis(x_Rn.reshape(x_Rn.shape[0], parts, PLACES, *x_Rn.shape[2:]), 1, 0)

        def judge(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            return _judged(head_logits(module.config, params, part[0]), part[1])

        judged = jax.lax.map(judge, (split(inputs[0]), split(inputs[1])))
        rest, likeliest = (jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)[:, :places] for x in judged)
    return jnp.concatenate([first_R1, rest], axis=1), jnp.concatenate([likeliest_R1, likeliest], axis=1)


def _judged(logits_BTV: jax.Array, tokens_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits_BTV = logits_BTV.astype(jnp.float32)
    chosen_BT = jnp.take_along_axis(logits_BTV, tokens_BT[..., None], axis=-1)[..., 0]
    logprobs_BT = chosen_BT - jax.nn.logsumexp(logits_BTV, axis=-1)
    return logprobs_BT, jnp.argmax(logits_BTV, axis=-1).astype(jnp.int32) == tokens_BT
