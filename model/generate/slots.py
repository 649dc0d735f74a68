"""The compiled programs that change one slot of the engine: read or copy a piece of a prompt, let a text enter or end.

Shapes: B slots, C tokens of a piece, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model import Source
from model.generate.cache import PIECE, block_of, row_of, spread, with_block, with_row
from model.generate.decode import Rows, bucket, shared_by_rows
from model.transformer import head_logits


def source_bucket(length: int) -> int:
    """Sources are padded to a power of two, from what `bucket` pads to on."""
    size = bucket(1)
    while size < length:
        size *= 2
    return size


def padded_source(tokens: tuple[int, ...], size: int) -> Source:
    """What a translator reads, as one row of this length."""
    padded_BS = np.zeros((1, size), np.int32)
    padded_BS[0, : len(tokens)] = tokens
    return Source.of(jnp.asarray(padded_BS), jnp.array([len(tokens)], jnp.int32))


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def read_piece(
    module: Any,
    params: Any,
    cache: Any,
    row: jax.Array,
    tokens_C: jax.Array,
    start: jax.Array,
    length: jax.Array,
    source: Source | None,
) -> tuple[Any, jax.Array]:
    """Read `length` tokens of a row's text from position `start` on; return the cache and what `piece_logits` takes."""
    places_C = jnp.arange(PIECE, dtype=jnp.int32)
    mine = row_of(cache, row)
    if source is not None:
        # What is kept of a source is as long as the source is padded to; behind it, its row is segment 0: nothing.
        mine = mine | {"source_segments": jnp.zeros_like(mine["source_segments"])}
        cache = with_row(cache, row, mine)
    hidden_BCD, variables = module.apply(
        {"params": params, "cache": mine},
        tokens_C[None], (start + places_C)[None], (places_C < length).astype(jnp.int32)[None],
        source=source, head=False, mutable=["cache"],
    )  # fmt: skip
    return spread(with_row(cache, row, variables["cache"])), hidden_BCD


@partial(jax.jit, static_argnums=(0, 1))
def piece_logits(module: Any, every: bool, params: Any, hidden_BCD: jax.Array, length: jax.Array) -> jax.Array:
    """Logits of what follows the last token of a piece, [1,V], or with `every` each of its tokens, [C,V].

    A program of its own, since that before it takes long to compile, and is the same for both.
    """
    if not every:
        hidden_BCD = jax.lax.dynamic_slice_in_dim(hidden_BCD, length - 1, 1, axis=1)
    return head_logits(module.config, params, hidden_BCD)[0]


@partial(jax.jit, donate_argnums=0)
def enter(rows: Rows, row: jax.Array, one: Rows, logits_V: jax.Array) -> Rows:
    """Put a text into a row."""
    rows = jax.tree.map(lambda all_B, one_1: all_B.at[row].set(one_1[0]), rows, one)
    return shared_by_rows(dataclasses.replace(rows, logits_BV=rows.logits_BV.at[row].set(logits_V)))


@partial(jax.jit, donate_argnums=0)
def stop(rows: Rows, row: jax.Array) -> Rows:
    """Write no more in a row."""
    return shared_by_rows(dataclasses.replace(rows, done_B=rows.done_B.at[row].set(True)))


@partial(jax.jit, donate_argnums=0)
def put_block(cache: Any, row: jax.Array, start: jax.Array, block: Any) -> Any:
    """Copy a block into a row."""
    return spread(with_block(cache, row, start, block))


@jax.jit
def take_block(cache: Any, row: jax.Array, start: jax.Array) -> Any:
    """What a row keeps of the piece that begins at this position."""
    return block_of(cache, row, start, PIECE)
