"""Pairs to translate: which languages, which are held out, and how they are packed into rows.

A pair is a `Section` with a source. Several pairs share a row: pair k has the segment k (from 1) in what is translated,
S tokens, and in its translation, T tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from configs import schema
from configs.derived import source_length
from train.data.sections import Corpus, DataError, Section, Sections, spread
from train.data.tokenizer import Tokenizer

# A pair as int32 tokens: the source with its end marked, the target with the end of text on both sides.
TokenPair = tuple[np.ndarray, np.ndarray]
# Pairs whose tokens stay in memory.
CACHED_PAIRS = 65_536
# Among so many of the next pairs those are looked for that fit into what is left of a row.
LOOK_AHEAD = 32
# After so many pairs in a row that don't fit, none is expected to.
MAX_MISSES = 10_000
# So much text is looked at to tell how many pairs are too long.
MAX_PROBED_BYTES = 2**20


def languages(config: schema.Data) -> tuple[str, str]:
    """The languages that `config.languages` translates (from, to).

    Raises:
      DataError: it does not name two.
    """
    names = tuple(config.languages.split("-"))
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        problem = f"--data.languages={config.languages}" if config.languages else "--data.languages is empty, and"
        raise DataError(
            f"{problem} must name two languages for --data.source={config.source}: from-to, such as en-de or en-zh"
        )
    return names


def text_number(text: str) -> int:
    """A number of 64 bits for a text, to tell equal texts of large corpora without keeping them."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def hold_out_unseen(chosen_N: np.ndarray, texts_N2: np.ndarray, source: str) -> np.ndarray:
    """Which of the pairs chosen to be held out share no text with those that are not, as [N] bool.

    A pair whose source was trained on would reward memory, and in the other direction so would one whose target was:
    without both, the two directions are judged on the same pairs.

    Args:
      chosen_N: bool, pairs that are not trained on.
      texts_N2: int64, `text_number` of each pair's source and target.
      source: for the error message.

    Raises:
      DataError: none is left.
    """
    seen_N = np.isin(texts_N2, texts_N2[~chosen_N]).any(axis=1)
    held_out_N = chosen_N & ~seen_N
    if not held_out_N.any():
        raise DataError(
            f"--data.source={source}: all pairs that could be held out for evaluation are in the training text as "
            f"well; give more pairs or a larger --data.held_out"
        )
    return held_out_N


class TokenizedPairs:
    """Pairs as tokens."""

    def __init__(self, pairs: Sections, tokenizer: Tokenizer) -> None:
        self._pairs, self._tokenizer = pairs, tokenizer
        self._tokens = lru_cache(maxsize=CACHED_PAIRS)(self._tokenize)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> TokenPair:
        return self._tokens(index)

    def _tokenize(self, index: int) -> TokenPair:
        return pair_tokens(self._pairs[index], self._tokenizer)


def pair_tokens(pair: Section, tokenizer: Tokenizer) -> TokenPair:
    """The tokens of one pair."""
    source = np.array(tokenizer.source(pair.source), np.int32)
    target = [tokenizer.start_of_target, *tokenizer.encode(pair.text), tokenizer.end_of_text]
    return source, np.array(target, np.int32)


def fits(pair: TokenPair, config: schema.Data) -> bool:
    """Whether a pair has text on both sides and no more than a row of each holds."""
    source, target = pair
    return 1 < len(source) <= source_length(config) and 2 < len(target) <= config.length + 1


def share_too_long(pairs: Sections, tokenizer: Tokenizer, config: schema.Data) -> float:
    """The share of pairs that don't fit into a row and are never read, by evenly spread ones."""
    probes = [fits(pair_tokens(pair, tokenizer), config) for pair in spread(pairs, MAX_PROBED_BYTES)]
    return 1 - float(np.mean(probes))


def tell_left_out(corpus: Corpus, tokenizer: Tokenizer, config: schema.Data) -> str:
    """One line on how many pairs are left out because they don't fit; empty if all do. Takes a second at most."""
    shares = [share_too_long(pairs, tokenizer, config) for pairs in (corpus.train, corpus.held_out)]
    if not any(shares):
        return ""
    return (
        f"{shares[0]:.1%} of the pairs to learn from and {shares[1]:.1%} of those held out are left out: they have "
        f"more than {source_length(config) - 1} tokens in {languages(config)[0]} (--data.source_length) or "
        f"{config.length - 1} in {languages(config)[1]} (--data.length)"
    )


class PairStream:
    """Packs the pairs `first`, `first + stride`, ... into rows, up to pair `end` if it is given.

    A row takes the next pairs in turn; those that don't fit into what is left of it wait for the next row, while
    later ones are tried. A pair waits no longer than until it is the oldest. Pairs that fit in no row are left out.

    Attributes:
      place: where the stream is, as a list for JSON: the pair that is read next, then those that wait.
    """

    def __init__(
        self, read: Callable[[int], TokenPair], config: schema.Data, first: int, stride: int, end: int | None = None
    ) -> None:
        self._read, self._config, self._stride, self._end = read, config, stride, end
        self.place = [first]
        self._waiting: dict[int, TokenPair] = {}  # those of `place[1:]` that have been read

    def exhausted(self) -> bool:
        """Whether there is no further pair."""
        self._look_ahead()
        return len(self.place) == 1

    def next_row(self) -> dict[str, np.ndarray]:
        """The next row: like a batch, without its first axis; empty if the pairs are used up."""
        self._look_ahead()
        row_CT = np.zeros((4, self._config.length), np.int32)
        source_CS = np.zeros((3, source_length(self._config)), np.int32)
        segment = used = source_used = 0
        waiting = {}
        for number in self.place[1:]:
            source, target = pair = self._waiting.get(number) or self._read(number)
            end, source_end = used + len(target) - 1, source_used + len(source)
            if end > row_CT.shape[1] or source_end > source_CS.shape[1]:
                waiting[number] = pair
                continue
            segment += 1
            row_CT[:, used:end] = target[:-1], target[1:], np.full(end - used, segment), np.arange(end - used)
            source_CS[:, source_used:source_end] = source, np.full(len(source), segment), np.arange(len(source))
            used, source_used = end, source_end
        self.place[1:], self._waiting = waiting, waiting
        names = ("inputs", "targets", "segments", "positions", "source", "source_segments", "source_positions")
        return dict(zip(names, (*row_CT, *source_CS), strict=True))

    def _look_ahead(self) -> None:
        misses = 0
        while len(self.place) <= LOOK_AHEAD and (self._end is None or self.place[0] < self._end):
            number = self.place[0]
            self.place[0] += self._stride
            pair = self._read(number)
            if fits(pair, self._config):
                self.place.append(number)
                self._waiting[number] = pair
                misses = 0
            elif self._end is None and (misses := misses + 1) > MAX_MISSES:
                raise DataError(
                    f"none of {MAX_MISSES} pairs fits into --data.source_length={source_length(self._config)} and "
                    f"--data.length={self._config.length} tokens: raise them"
                )
