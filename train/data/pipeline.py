"""Batches of packed text, as a Grain pipeline whose place is in the checkpoint.

Row r of the global batch (0 <= r < B) is a stream of its own: it reads the shuffled sections r, r+B, r+2B, ... epoch
after epoch, and lays them end to end in rows of T tokens, or packs them whole if they are pairs. Batch n therefore
depends on the seed, n and B alone. A process that holds some of the rows reads the sections of those rows only, and how
many processes there are changes nothing.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Protocol, cast

import grain
import numpy as np

from configs.derived import fills_in, is_made_up
from configs.schema import Config
from train.data.masking import MaskedStream, TokenizedReadings
from train.data.pairs import PairStream, TokenizedPairs
from train.data.sections import Corpus, DataError, Section, Sections
from train.data.tasks import Examples, TaskStream, TokenizedExamples
from train.data.tokenizer import Tokenizer

# inputs, targets, segments and positions, each [B, T] int32. Segments count the sections of a row from 1; 0 is
# padding, whose target does not count. Positions count from 0 in each segment. Batches of pairs have source,
# source_segments and source_positions, each [B, S] int32, as well. Where only some targets count, weights [B, T] int32
# has 1 for them.
Batch = dict[str, np.ndarray]
# Sections whose tokens stay in memory.
CACHED_SECTIONS = 16_384


class TokenizedSections:
    """Sections as int32 tokens: end of text, the section, and end of text again if its document ends with it."""

    def __init__(self, sections: Sections, tokenizer: Tokenizer) -> None:
        self._sections, self._tokenizer = sections, tokenizer
        self._tokens = lru_cache(maxsize=CACHED_SECTIONS)(self._tokenize)

    def __len__(self) -> int:
        return len(self._sections)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._tokens(index)

    def _tokenize(self, index: int) -> np.ndarray:
        section = self._sections[index]
        return with_ends(self._tokenizer.encode(section.text), section, self._tokenizer)


def with_ends(tokens: list[int], section: Section, tokenizer: Tokenizer) -> np.ndarray:
    """The tokens of a section behind what texts begin with and, if it is its document's last, before the end of text.

    Texts of our own tokenizers begin with the end of the text before; others' have what their prompts have.
    """
    return np.array([*tokenizer.beginning, *tokens, *[tokenizer.end_of_text] * section.last], np.int32)


class RowStream:
    """Packs the sections `first`, `first + stride`, ... into rows of `length`, up to section `end` if it is given.

    What is left of a section at the end of a row goes on in the next row as a new segment, whose first input is the
    last target before it: each token after a section's first is a target exactly once.

    Attributes:
      place: where the stream is, as a list for JSON: the section that is read next, and how many of its targets have
        been handed out.
    """

    def __init__(
        self, tokens_of: Callable[[int], np.ndarray], length: int, first: int, stride: int, end: int | None = None
    ) -> None:
        self._tokens_of, self._length, self._stride, self._end = tokens_of, length, stride, end
        self.place = [first, 0]

    def exhausted(self) -> bool:
        """Whether there is no further section."""
        return self._end is not None and self.place[0] >= self._end

    def next_row(self) -> Batch:
        """The next row: like a batch, without its first axis; padded at the end if the sections are used up."""
        row_CT = np.zeros((4, self._length), np.int32)
        used, segment = 0, 0
        while used < self._length and not self.exhausted():
            section, offset = self.place
            tokens = self._tokens_of(section)
            taken = min(self._length - used, len(tokens) - 1 - offset)
            piece, end = slice(offset, offset + taken + 1), used + taken
            segment += 1
            row_CT[0, used:end] = tokens[piece][:-1]
            row_CT[1, used:end] = tokens[piece][1:]
            row_CT[2, used:end] = segment
            row_CT[3, used:end] = np.arange(taken)
            used, offset = end, offset + taken
            self.place = [section + self._stride, 0] if offset == len(tokens) - 1 else [section, offset]
        return dict(zip(("inputs", "targets", "segments", "positions"), row_CT, strict=True))


class Stream(Protocol):
    """One row of each batch; `place` goes into the checkpoint, and setting it goes there."""

    place: list[int]

    def exhausted(self) -> bool:
        """Whether there is nothing left to read."""
        ...

    def next_row(self) -> Batch:
        """One row of the next batch."""
        ...


def _tokenized(sections: Sections, tokenizer: Tokenizer, config: Config) -> grain.sources.RandomAccessDataSource[Any]:
    if fills_in(config):
        return TokenizedReadings(sections, tokenizer)
    if is_made_up(config.data):
        return TokenizedExamples(cast(Examples, sections), tokenizer)
    return (TokenizedPairs if config.data.languages else TokenizedSections)(sections, tokenizer)


def _stream(
    read: Callable[[int], Any], tokenizer: Tokenizer, config: Config, first: int, stride: int, end: int | None = None
) -> Stream:
    if fills_in(config):
        # What is held out is judged with the same tokens masked, whichever the run's seed is.
        seed = _spread_out(config.train.seed) if end is None else 0
        return MaskedStream(read, config.data, tokenizer, first, stride, end, seed)
    if is_made_up(config.data):
        return TaskStream(read, config.data.length, first, stride, end)
    if config.data.languages:
        return PairStream(read, config.data, first, stride, end)
    return RowStream(read, config.data.length, first, stride, end)


class _Rows(grain.IterDataset[Batch]):
    """Some rows of each global batch."""

    def __init__(
        self, tokens: grain.MapDataset[Any], tokenizer: Tokenizer, config: Config, rows: Sequence[int]
    ) -> None:
        super().__init__()
        self._arguments = tokens, tokenizer, config, rows

    def __iter__(self) -> grain.DatasetIterator[Batch]:
        return _RowsIterator(*self._arguments)


class _RowsIterator(grain.DatasetIterator[Batch]):
    def __init__(
        self, tokens: grain.MapDataset[Any], tokenizer: Tokenizer, config: Config, rows: Sequence[int]
    ) -> None:
        super().__init__()
        # Grain's type allows for elements that a filter took out; there is none.
        # Shuffling an index takes a millisecond where there are few, and a row needs its section again and again.
        read = lru_cache(maxsize=2 * len(rows))(cast("Callable[[int], Any]", tokens.__getitem__))
        self._streams = {row: _stream(read, tokenizer, config, row, config.train.batch_size) for row in rows}

    def __next__(self) -> Batch:
        return _stack([stream.next_row() for stream in self._streams.values()])

    def get_state(self) -> dict[str, Any]:
        return {"rows": {str(row): list(stream.place) for row, stream in self._streams.items()}}

    def set_state(self, state: dict[str, Any]) -> None:
        missing = sorted(row for row in self._streams if str(row) not in state["rows"])
        if missing:
            raise DataError(
                f"the saved place in the data is that of the rows {', '.join(state['rows'])}; this process needs "
                f"{missing} as well: the checkpoint is not whole, or was made with another --train.batch_size"
            )
        for row, stream in self._streams.items():
            stream.place = list(state["rows"][str(row)])


class _Prefetched(grain.experimental.ThreadPrefetchDatasetIterator[Batch]):
    """Prefetches in a thread, and ends it before Python shuts down.

    Grain ends it when the iterator is deleted; when that is after the shutdown of Grain's own modules, it prints an
    exception that nobody can catch.
    """

    def __init__(self, parent: grain.DatasetIterator[Batch], prefetch: int) -> None:
        super().__init__(parent, prefetch)
        self._ended = False
        reference = weakref.ref(self)
        atexit.register(lambda: (alive := reference()) and alive.close())

    def close(self) -> None:
        if not self._ended:
            self._ended = True
            super().close()


def train_batches(
    corpus: Corpus, tokenizer: Tokenizer, config: Config, rows: Sequence[int] | None = None
) -> grain.DatasetIterator[Batch]:
    """The given rows of each training batch (all, if None), endlessly; padding only where a further pair did not fit.

    The iterator's `get_state` gives a dictionary for JSON that tells the place behind the last batch handed out,
    whatever has been prefetched; `set_state` goes there. States of several processes are merged by joining their
    "rows", and a merged one fits any rows.

    Returns:
      An iterator over [len(rows), T] batches; of pairs if `config.data.languages` is set.

    Raises:
      DataError: there is no text; later, that no pair fits into a row.
    """
    tokens = grain.MapDataset.source(_tokenized(corpus.train, tokenizer, config))
    if config.data.shuffle:
        # Grain adds the epoch to the seed; spread out, seeds 0 and 1 don't share their orders.
        tokens = tokens.shuffle(seed=_spread_out(config.train.seed))
    dataset = _Rows(tokens.repeat(), tokenizer, config, range(config.train.batch_size) if rows is None else rows)
    return _Prefetched(iter(dataset), config.data.prefetch)


def held_out_batches(
    corpus: Corpus, tokenizer: Tokenizer, config: Config, rows: Sequence[int] | None = None
) -> Iterator[Batch]:
    """The given rows (all, if None) of the batches that hold all of the held-out text once; the last one is padded.

    The text is in order; pairs that are too long for a row are left out, and the others only nearly in order.

    Whichever rows are asked for, there are as many batches.
    """
    tokens = _tokenized(corpus.held_out, tokenizer, config)
    stream = _stream(tokens.__getitem__, tokenizer, config, first=0, stride=1, end=len(tokens))

    def batches() -> Iterator[Batch]:
        while not stream.exhausted():
            batch = [stream.next_row() for _ in range(config.train.batch_size)]
            yield _stack(batch if rows is None else [batch[row] for row in rows])

    return batches()


def padding_efficiency(batch: Batch) -> float:
    """The share of a batch's positions that hold text, those of the source included."""
    names = [name for name in ("segments", "source_segments") if name in batch]
    return float(np.mean(np.concatenate([batch[name] > 0 for name in names], axis=1)))


def _spread_out(seed: int) -> int:
    return int(np.random.SeedSequence(seed % 2**64).generate_state(1)[0])


def _stack(rows: list[Batch]) -> Batch:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
