"""What simple models reach on the same held-out text: n-gram models of the same tokens, and `xz -9`."""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from train.data.pipeline import with_ends
from train.data.sections import Corpus, Sections, spread
from train.data.tokenizer import Tokenizer

# More than this is not read, of the training and of the held-out text: the n-gram counts are kept in memory.
MAX_BYTES = 64 * 2**20
NAMES = {1: "unigram", 2: "bigram", 3: "trigram"}


def baselines(corpus: Corpus, tokenizer: Tokenizer, orders: Sequence[int] = tuple(NAMES)) -> dict[str, float]:
    """Bits per byte of held-out text: n-grams of the given orders, trained on the training text, and `xz`.

    The first are `unigram`, `bigram` and `trigram`, others such as `5-gram`.

    The n-gram models predict what the network predicts: each token of each section and the end of text after each
    document, knowing that a section starts; unlike the network they see across the ends of rows. `xz` is the size of
    the one file that holds all of the held-out text. Of more than 64 MiB of text, sections evenly spread are read.
    Of pairs they see the targets alone.
    """
    train_N = _targets_after_ends(corpus.train, tokenizer)
    held_out_N = _targets_after_ends(corpus.held_out, tokenizer)
    text = "".join(section.text for section in spread(corpus.held_out, MAX_BYTES)).encode()
    result = {}
    for order in orders:
        model = KneserNey.train(train_N, order, tokenizer.size)
        result[NAMES.get(order, f"{order}-gram")] = float(-model.log2_probability(held_out_N).sum() / len(text))
    result["xz"] = 8 * len(lzma.compress(text, preset=9)) / len(text)
    return result


def _targets_after_ends(sections: Sections, tokenizer: Tokenizer) -> list[np.ndarray]:
    """The sections as tokens, each after an end of text."""
    read = list(spread(sections, MAX_BYTES))
    all_tokens = tokenizer.encode_all([section.text for section in read])
    return [with_ends(tokens, section, tokenizer) for tokens, section in zip(all_tokens, read, strict=True)]


@dataclass(frozen=True)
class _Order:
    """Counts of the n-grams of one length, sorted, and what is needed to look up their contexts.

    Attributes:
      grams_U: [U] int64, the n-grams as numbers in base V.
      discounted_U: [U] float64, their counts less the discount.
      contexts_C: [C] int64, the contexts as numbers; totals_C and left_C: the counts seen in each, and the sum of
        what was discounted there.
    """

    grams_U: np.ndarray
    discounted_U: np.ndarray
    contexts_C: np.ndarray
    totals_C: np.ndarray
    left_C: np.ndarray


class KneserNey:
    """Interpolated modified Kneser-Ney n-gram model (Chen & Goodman 1998, "An Empirical Study of Smoothing
    Techniques for Language Modeling", section 3), down to the uniform distribution over all V tokens.

    The longest n-grams are counted; shorter ones count in how many contexts they occur. Each count is lowered by one
    of three discounts (for counts of 1, 2, and 3 or more) that follow from how many n-grams were seen once to four
    times, and what that sets free is shared out by the next shorter model. Before a section's first token the context
    is filled up with the token that the section starts with.
    """

    def __init__(self, orders: list[_Order], vocab_size: int) -> None:
        self._orders, self._vocab_size = orders, vocab_size

    @staticmethod
    def train(sections: list[np.ndarray], order: int, vocab_size: int) -> KneserNey:
        """Counts n-grams of up to `order` tokens.

        Args:
          sections: int tokens of each section; the first is context only.
        """
        grams_U, counts_U = np.unique(_grams(sections, order, vocab_size), return_counts=True)
        orders = [_discount(grams_U, counts_U, vocab_size)]
        for length in range(order - 1, 0, -1):
            # Dropping an n-gram's first token: how many different ones were there?
            grams_U, counts_U = np.unique(grams_U % vocab_size**length, return_counts=True)
            orders.append(_discount(grams_U, counts_U, vocab_size))
        return KneserNey(orders[::-1], vocab_size)

    def log2_probability(self, sections: list[np.ndarray]) -> np.ndarray:
        """Log2 of the probability of each token but the first of each section, given those before it; [N] float64."""
        grams_N = _grams(sections, len(self._orders), self._vocab_size)
        return np.log2(self.probability(grams_N))

    def probability(self, grams_N: np.ndarray) -> np.ndarray:
        """Probability of the last token of each n-gram (a number in base V) given the ones before it; [N] float64."""
        probability_N = np.full(len(grams_N), 1 / self._vocab_size)
        for length, order in enumerate(self._orders, start=1):
            gram_N = grams_N % self._vocab_size**length
            context_N = gram_N // self._vocab_size
            total_N = _look_up(order.contexts_C, order.totals_C, context_N)
            left_N = _look_up(order.contexts_C, order.left_C, context_N)
            seen_N = _look_up(order.grams_U, order.discounted_U, gram_N)
            known_N = total_N > 0
            mixed_N = (seen_N + left_N * probability_N) / np.where(known_N, total_N, 1)
            probability_N = np.where(known_N, mixed_N, probability_N)
        return probability_N


def _grams(sections: list[np.ndarray], order: int, vocab_size: int) -> np.ndarray:
    """The n-gram that ends at each token but the first of each section, as a number in base V."""
    if vocab_size**order > np.iinfo(np.int64).max:
        raise ValueError(f"{order}-grams of {vocab_size} tokens don't fit in 64 bits")
    padded = [np.concatenate([np.repeat(tokens[:1], order - 1), tokens[1:]]) for tokens in sections]
    result = []
    for tokens in padded:
        count = len(tokens) - order + 1
        gram_N = np.zeros(count, np.int64)
        for place in range(order):
            gram_N = gram_N * vocab_size + tokens[place : place + count]
        result.append(gram_N)
    return np.concatenate(result)


def _discount(grams_U: np.ndarray, counts_U: np.ndarray, vocab_size: int) -> _Order:
    """Discounts the sorted n-grams' counts and sums up by context (Chen & Goodman 1998, equation 26)."""
    seen = [float(np.sum(counts_U == count)) for count in (1, 2, 3, 4)]
    scale = seen[0] / (seen[0] + 2 * seen[1]) if seen[0] else 0.0
    discounts = np.zeros(4)
    for count in (1, 2, 3):
        fewer, more = seen[count - 1], seen[count]
        discount = count - (count + 1) * scale * more / fewer if fewer else 0.0
        # With few counts the estimate can leave its range, or there is none; half a count then, as good as any.
        discounts[count] = discount if 0 < discount < count else 0.5
    taken_U = discounts[np.minimum(counts_U, 3)]
    contexts_C, start_C = np.unique(grams_U // vocab_size, return_index=True)
    totals_C, left_C = (np.add.reduceat(values_U.astype(np.float64), start_C) for values_U in (counts_U, taken_U))
    return _Order(grams_U, counts_U - taken_U, contexts_C, totals_C, left_C)


def _look_up(keys_U: np.ndarray, values_U: np.ndarray, key_N: np.ndarray) -> np.ndarray:
    """Values of keys among the sorted `keys_U`; 0 for those that are not there."""
    place_N = np.minimum(np.searchsorted(keys_U, key_N), len(keys_U) - 1)
    return np.where(keys_U[place_N] == key_N, values_U[place_N], 0)
