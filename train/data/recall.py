"""Associative recall: keys with their values, then the keys again and again, and the values are asked for.

Graves et al. 2014, "Neural Turing Machines", section 4.3; in this form Arora et al. 2023, "Zoology: Measuring and
Improving Recall in Efficient Language Models", section 3 (multi-query).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from train.data.tasks import Example, syllables

KEYS, VALUES = 16, 16


@dataclass(frozen=True)
class Recall:
    """`pairs` keys, each with a value behind it, and then any of them once more, up to `length` words."""

    pairs: int
    length: int

    @property
    def words(self) -> tuple[str, ...]:
        """Keys are syllables, values are numbers."""
        return (*syllables(KEYS), *map(str, range(VALUES)))

    def example(self, random: np.random.Generator) -> Example:
        """Keys are different from each other, values need not be."""
        keys = random.permutation(KEYS)[: self.pairs]
        values = KEYS + random.integers(VALUES, size=self.pairs)
        pairs_P2 = np.stack([keys, values], axis=1)
        again = random.integers(self.pairs, size=self.length // 2 - self.pairs)
        words_T = np.concatenate([pairs_P2, pairs_P2[again]]).ravel()
        place_T = np.arange(len(words_T))
        return Example(words_T, (place_T >= 2 * self.pairs) & (place_T % 2 == 1))
