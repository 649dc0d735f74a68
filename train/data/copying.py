"""Copying over a distance: some words, then nothing for a long time, then the same words again.

Hochreiter & Schmidhuber 1997, "Long Short-Term Memory", section 5; in this form Arjovsky et al. 2016, "Unitary
Evolution Recurrent Neural Networks", section 5.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from train.data.tasks import Example, syllables

COPIED = 8  # Words, and so the shortest distance.
ALPHABET = 16
BLANK = ALPHABET


@dataclass(frozen=True)
class Copying:
    """Each of eight random words comes again `distance` words later."""

    distance: int
    words: tuple[str, ...] = (*syllables(ALPHABET), "-")

    def example(self, random: np.random.Generator) -> Example:
        """Between the words and their copy there are blanks."""
        words_T = np.full(self.distance + COPIED, BLANK)
        words_T[:COPIED] = words_T[self.distance :] = random.integers(ALPHABET, size=COPIED)
        return Example(words_T, np.arange(len(words_T)) >= self.distance)
