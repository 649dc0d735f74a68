"""What a network looks at while it reads a text, and what it expects next: numbers for the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model.decoder import Decoder
from model.lens.record import record
from train.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Look:
    """The tokens of a text, T of them, and how much each attends to each, [L,N,T,T] float32."""

    tokens: list[str]
    weights_LNTS: np.ndarray

    def rounded(self) -> list[Any]:
        """The weights as nested lists, with the six digits that float32 softmax is good for."""
        return np.round(self.weights_LNTS.astype(np.float64), 6).tolist()


def look_at(module: Decoder, params: Any, tokenizer: Tokenizer, ids: Sequence[int]) -> Look:
    """What the network attends to while it reads the tokens `ids` (`read_ids` of a text)."""
    weights_LBNTS = record(module, params, jnp.array([ids], jnp.int32))["layers/attention/weights"]
    return Look([tokenizer.token_text(id) for id in ids], np.asarray(weights_LBNTS[:, 0]))


def read_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of `text` as the beginning of a document, as in training: of ours after the end-of-text token."""
    return tokenizer.prompt(text)


def shown_pair(run: Run) -> Section:
    """A held-out sentence of middle length with its translation; the first one, if there is none."""
    pairs = held_out_pairs(run.corpus, max(1, run.config.train.score_sentences))
    lengths = [len(run.tokenizer.encode(pair.source)) for pair in pairs]
    return next((pair for pair, length in zip(pairs, lengths, strict=True) if 10 <= length <= 25), pairs[0])


def count(params: Any) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
