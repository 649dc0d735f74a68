"""Random words that begin anew: what follows is what followed the last time.

Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", section "Induction heads"; Olsson et al. 2022,
"In-context Learning and Induction Heads".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from train.data.tasks import Example, syllables

# With one period for all rows a single layer could look back by that many words, and never compare any.
PERIODS = range(8, 33)


@dataclass(frozen=True)
class Induction:
    """Rows of `length` words that repeat themselves, with a period of their own."""

    length: int
    words: tuple[str, ...] = syllables(64)

    def example(self, random: np.random.Generator) -> Example:
        """The words of the first period are random, and all different.

        The first word of the second period cannot be known: nothing has followed the word before it yet.
        """
        period = int(random.integers(PERIODS.start, PERIODS.stop))
        once = random.permutation(len(self.words))[:period]
        return Example(np.resize(once, self.length), np.arange(self.length) > period)
