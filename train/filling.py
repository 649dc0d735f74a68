"""Text with gaps, filled in by a network that has learnt to."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train.data.sections import DataError
from train.data.tokenizer import MASK, Tokenizer


def gapped_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of `text` as the beginning of a document, with the mask token where it says MASK.

    A space before a gap belongs to what is missing, as the space before a word belongs to its token.

    Raises:
      DataError: the tokenizer has no mask token.
    """
    if tokenizer.mask is None:
        raise DataError(f"the tokenizer has no token {MASK}: only networks that learnt to fill in can do so")
    *before, last = text.split(MASK)
    pieces = [*(piece.removesuffix(" ") for piece in before), last]
    tokens = [tokenizer.encode(piece) for piece in pieces]
    return [tokenizer.end_of_text, *tokens[0], *itertools.chain(*([tokenizer.mask, *piece] for piece in tokens[1:]))]


def fill_in(module: Any, params: Any, tokenizer: Tokenizer, text: str) -> str:
    """`text` with the likeliest token in the place of each MASK, all chosen at once.

    Raises:
      DataError: the tokenizer has no mask token.
    """
    ids_T = np.array(gapped_ids(tokenizer, text), np.int32)
    logits_BTV = jax.jit(module.apply)({"params": params}, jnp.asarray(ids_T[None]))
    words_V = jnp.asarray(tokenizer.byte_lengths > 0)  # A gap stands for text, not for the end of it.
    best_T = np.asarray(jnp.argmax(jnp.where(words_V[None], logits_BTV[0], -jnp.inf), axis=-1))
    return tokenizer.decode(np.where(ids_T == tokenizer.mask, best_T, ids_T).tolist())
