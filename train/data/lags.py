"""Each word follows from two words before it, which stand at different distances and count differently."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from train.data.tasks import Example, syllables

NEAR, FAR = 2, 5  # Words back.
WORDS = 11


@dataclass(frozen=True)
class Lags:
    """Word number t is word (t-2) plus 3 times word (t-5), modulo 11: neither of them alone says anything of it."""

    length: int
    words: tuple[str, ...] = syllables(WORDS)

    def example(self, random: np.random.Generator) -> Example:
        """The first five words are random, all others follow from them."""
        words = random.integers(WORDS, size=FAR).tolist()
        while len(words) < self.length:
            words.append((words[-NEAR] + 3 * words[-FAR]) % WORDS)
        return Example(np.array(words[: self.length]), np.arange(self.length) >= FAR)
