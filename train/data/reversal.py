"""Words to be written down from the last to the first: a translation whose alignment is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from train.data.sections import Corpus, Section, digest
from train.data.tasks import HELD_OUT, TRAIN, syllables

WORDS = syllables(32)
LENGTHS = range(6, 13)


@dataclass(frozen=True)
class Reversals:
    """Pairs of random words and the same words backwards, by number."""

    count: int
    stream: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Section:
        random = np.random.default_rng([self.stream, index])
        words = [WORDS[word] for word in random.integers(len(WORDS), size=random.integers(LENGTHS.start, LENGTHS.stop))]
        text, source = ("".join(f" {word}" for word in order) for order in (reversed(words), words))
        return Section(text, last=True, source=source)


def open_reversal() -> Corpus:
    """A corpus of such pairs: a million to learn from and 512 others that are held out."""
    train, held_out = Reversals(TRAIN, stream=0), Reversals(HELD_OUT, stream=1)
    description = f"generated rows of {LENGTHS.start} to {LENGTHS[-1]} random words and the same words backwards"
    fingerprint = digest([train[0].text, held_out[0].text, description])
    return Corpus(train, held_out, fingerprint, description, vocabulary="".join(f" {word}" for word in WORDS))
