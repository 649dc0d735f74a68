"""Rows in which tokens have to be filled in: what an encoder learns from (Devlin et al. 2019, "BERT", section 3.1).

Of the tokens of a row a share `data.masked` is chosen at random. Eight of ten of them are replaced by the mask token,
one of ten by any other token, and one of ten is left as it is, so that a network cannot tell which tokens it may
trust. Where a section says what is read and, word for word, what is meant by it (`train.data.coreference`), the tokens
that differ have to be filled in as well, and are read as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from configs import schema
from train.data.sections import DataError, Sections
from train.data.tokenizer import MASK, Tokenizer

# What is read and what it stands for, as int32 tokens, one for one; both begin with the end of text.
TokenReading = tuple[np.ndarray, np.ndarray]
# Sections whose tokens stay in memory.
CACHED_SECTIONS = 65_536
# Of the chosen tokens, how many are masked, and how many masked or replaced.
MASKED, REPLACED = 0.8, 0.9


class TokenizedReadings:
    """Sections as tokens: what is read, and what has to be filled in."""

    def __init__(self, sections: Sections, tokenizer: Tokenizer) -> None:
        self._sections, self._tokenizer = sections, tokenizer
        self._tokens = lru_cache(maxsize=CACHED_SECTIONS)(self._tokenize)

    def __len__(self) -> int:
        return len(self._sections)

    def __getitem__(self, index: int) -> TokenReading:
        return self._tokens(index)

    def _tokenize(self, index: int) -> TokenReading:
        section, end = self._sections[index], self._tokenizer.end_of_text
        meant = np.array([end, *self._tokenizer.encode(section.text)], np.int32)
        if not section.source:
            return meant, meant
        read = np.array([end, *self._tokenizer.encode(section.source)], np.int32)
        if len(read) != len(meant):
            raise DataError(
                f"{section.source!r} has {len(read) - 1} tokens and {section.text!r} has {len(meant) - 1}; what is "
                f"read and what is meant must have as many: use --tokenizer.source=words"
            )
        return read, meant


class MaskedStream:
    """Packs sections into rows of T tokens, some of which have to be filled in.

    It reads the sections `first`, `first + stride`, ... up to section `end` if it is given. A section that fits into a
    row is not cut: what is left of the row before is padding. A longer one is cut wherever a row ends.

    Attributes:
      place: where the stream is: the section that is read next, and how many of its tokens have been read.
    """

    def __init__(
        self,
        read: Callable[[int], TokenReading],
        config: schema.Data,
        tokenizer: Tokenizer,
        first: int,
        stride: int,
        end: int | None = None,
        seed: int = 0,
    ) -> None:
        """As the class says.

        Args:
          seed: what is chosen is a function of it and of the place at which the row begins, and of nothing else.

        Raises:
          DataError: the tokenizer has no mask token.
        """
        if tokenizer.mask is None:
            raise DataError(f"the tokenizer has no token {MASK}, and a network that fills in needs one")
        self._read, self._config, self._mask = read, config, tokenizer.mask
        self._stride, self._end, self._seed = stride, end, seed
        self._words = np.flatnonzero(tokenizer.byte_lengths).astype(np.int32)  # All but the special tokens.
        self._is_word_V = tokenizer.byte_lengths > 0
        self.place = [first, 0]

    def exhausted(self) -> bool:
        """Whether there is no further section."""
        return self._end is not None and self.place[0] >= self._end

    def next_row(self) -> dict[str, np.ndarray]:
        """The next row: inputs, targets, segments, positions and weights, each [T] int32.

        Targets are what the inputs stand for, token by token; those with weight 1 have to be filled in.
        """
        place = tuple(self.place)
        row = {name: np.zeros(self._config.length, np.int32) for name in ("inputs", "targets", "segments", "positions")}
        used, segment = 0, 0
        while used < self._config.length and not self.exhausted():
            section, offset = self.place
            read, meant = self._read(section)
            left = self._config.length - used
            if used and len(read) <= self._config.length and len(read) > left:
                break
            taken = min(left, len(read) - offset)
            piece, there = slice(offset, offset + taken), slice(used, used + taken)
            used, segment = used + taken, segment + 1
            row["inputs"][there], row["targets"][there] = read[piece], meant[piece]
            row["segments"][there], row["positions"][there] = segment, np.arange(taken)
            self.place = [section, offset + taken] if offset + taken < len(read) else [section + self._stride, 0]
        return self._masked(row, np.random.default_rng([self._seed, *place]))

    def _masked(self, row: dict[str, np.ndarray], random: np.random.Generator) -> dict[str, np.ndarray]:
        """The row with some of what it reads hidden, and with the weights of its targets."""
        read_T = row["inputs"]
        asked_T = read_T != row["targets"]
        free_T = self._is_word_V[read_T] & (row["segments"] != 0) & ~asked_T
        chosen_T = free_T & (random.random(len(read_T)) < self._config.masked)
        fate_T = random.random(len(read_T))
        other_T = self._words[random.integers(len(self._words), size=len(read_T))]
        read_T = np.where(chosen_T & (fate_T < MASKED), np.int32(self._mask), read_T)
        read_T = np.where(chosen_T & (fate_T >= MASKED) & (fate_T < REPLACED), other_T, read_T)
        return {**row, "inputs": read_T, "weights": (chosen_T | asked_T).astype(np.int32)}
