"""Associative recall: keys with their values, then the keys again, in another order, and the values are asked for.

Graves et al. 2014, "Neural Turing Machines", section 4.3; with all keys asked for as in Arora et al. 2023, "Zoology:
Measuring and Improving Recall in Efficient Language Models", section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from train.data.tasks import Example, syllables

KEYS, VALUES = 16, 16


@dataclass(frozen=True)
class Recall:
    """`pairs` keys, each with a value behind it, and then each key once more."""

    pairs: int

    @property
    def words(self) -> tuple[str, ...]:
        """Keys are syllables, values are numbers."""
        return (*syllables(KEYS), *map(str, range(VALUES)))

    def example(self, random: np.random.Generator) -> Example:
        """Keys are different from each other, values need not be."""
        keys = random.permutation(KEYS)[: self.pairs]
        values = KEYS + random.integers(VALUES, size=self.pairs)
        pairs_P2 = np.stack([keys, values], axis=1)
        words_T = np.concatenate([pairs_P2, random.permutation(pairs_P2)]).ravel()
        place_T = np.arange(len(words_T))
        return Example(words_T, (place_T >= 2 * self.pairs) & (place_T % 2 == 1))
