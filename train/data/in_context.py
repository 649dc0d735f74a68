"""Functions that are to be found out from examples in the row: a line or plane through noise, and a table.

Each row has a function of its own, drawn at random, so that nothing of it can be learnt but from the row itself.
Garg et al. 2022, "What Can Transformers Learn In-Context?", section 2, where numbers are read as they are; here they
are words, whole numbers and halves, so that any network of ours can read and write them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from train.data.tasks import Example, syllables

REACH = 2  # Inputs are whole numbers from -REACH to REACH.
PER_UNIT = 2  # Outputs are rounded to halves.
FARTHEST = 6  # Outputs that lie farther from 0 are brought back to here; one in some hundred does.
NOISE = 0.25  # Standard deviation of what is added to an output.


@dataclass(frozen=True)
class Regression:
    """`pairs` times an input x_D and, as one word, this input and its output y = w·x + noise. The slopes w are
    normal, of a mean square of 1 in all.

    What comes behind an input is asked for: which of the examples that can follow it, as there is one for each output.
    """

    dimensions: int
    pairs: int

    @property
    def inputs(self) -> np.ndarray:
        """The inputs that there are, [I,D]: the first I words."""
        return np.array(list(itertools.product(range(-REACH, REACH + 1), repeat=self.dimensions)))

    @property
    def outputs(self) -> np.ndarray:
        """The outputs that there are, [O]; for each input, O more words."""
        return np.arange(-FARTHEST * PER_UNIT, FARTHEST * PER_UNIT + 1) / PER_UNIT

    @property
    def words(self) -> tuple[str, ...]:
        """They are numbered."""
        inputs = len(self.inputs)
        return tuple(map(str, range(inputs + inputs * len(self.outputs))))

    def example(self, random: np.random.Generator) -> Example:
        """All examples are asked for, also the first, of whose output nothing can be known."""
        inputs_ID, outputs = self.inputs, len(self.outputs)
        input_P = random.integers(len(inputs_ID), size=self.pairs)
        slopes_D = random.standard_normal(self.dimensions) / self.dimensions**0.5
        outputs_P = inputs_ID[input_P] @ slopes_D + NOISE * random.standard_normal(self.pairs)
        output_P = np.clip(np.rint((outputs_P + FARTHEST) * PER_UNIT), 0, outputs - 1).astype(int)
        words_T = np.column_stack([input_P, len(inputs_ID) + input_P * outputs + output_P]).ravel()
        return Example(words_T, np.arange(len(words_T)) % 2 == 1)


@dataclass(frozen=True)
class Lookup:
    """`pairs` times one of `keys` keys, drawn anew each time, and the value that it has in this row."""

    keys: int
    pairs: int
    values: int = 16

    @property
    def words(self) -> tuple[str, ...]:
        """Keys are syllables, values are numbers."""
        return (*syllables(self.keys), *map(str, range(self.values)))

    def example(self, random: np.random.Generator) -> Example:
        """Every value is asked for, also that of a key which comes for the first time."""
        table = self.keys + random.integers(self.values, size=self.keys)
        keys_P = random.integers(self.keys, size=self.pairs)
        words_T = np.column_stack([keys_P, table[keys_P]]).ravel()
        return Example(words_T, np.arange(len(words_T)) % 2 == 1)
