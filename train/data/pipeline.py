"""Batches of packed text, as a Grain pipeline whose place is in the checkpoint.

Row r of the global batch (0 <= r < B) is a stream of its own: it reads the shuffled sections r, r+B, r+2B, ... epoch
after epoch, and lays them end to end in rows of T tokens. Batch n therefore depends on the seed, n and B alone. A
process that owns some of the rows reads the sections of those rows only, and how many processes there are changes
nothing.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, cast

import grain
import numpy as np

from configs.schema import Config
from train.data.sections import Corpus, DataError, Section, Sections
from train.data.tokenizer import Tokenizer

# inputs, targets, segments and positions, each [B, T] int32. Segments count the sections of a row from 1; 0 is
# padding, whose target does not count. Positions count from 0 in each segment.
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
        return with_ends(self._tokenizer.encode(section.text), section, self._tokenizer.end_of_text)


def with_ends(tokens: list[int], section: Section, end_of_text: int) -> np.ndarray:
    """The tokens of a section with the end of text before them and, after its document's last one, behind them."""
    return np.array([end_of_text, *tokens, *[end_of_text] * section.last], np.int32)


class RowStream:
    """Packs the sections `first`, `first + stride`, ... into rows of `length`, up to section `end` if it is given.

    What is left of a section at the end of a row goes on in the next row as a new segment, whose first input is the
    last target before it: each token after a section's first is a target exactly once.

    Attributes:
      section: number of the section that is read next.
      offset: how many of its targets have been handed out.
    """

    def __init__(
        self, tokens_of: Callable[[int], np.ndarray], length: int, first: int, stride: int, end: int | None = None
    ) -> None:
        self._tokens_of, self._length, self._stride, self._end = tokens_of, length, stride, end
        self.section, self.offset = first, 0

    def exhausted(self) -> bool:
        """Whether there is no further section."""
        return self._end is not None and self.section >= self._end

    def next_row(self) -> Batch:
        """The next row: like a batch, without its first axis; padded at the end if the sections are used up."""
        row_CT = np.zeros((4, self._length), np.int32)
        used, segment = 0, 0
        while used < self._length and not self.exhausted():
            tokens = self._tokens_of(self.section)
            taken = min(self._length - used, len(tokens) - 1 - self.offset)
            piece, end = slice(self.offset, self.offset + taken + 1), used + taken
            segment += 1
            row_CT[0, used:end] = tokens[piece][:-1]
            row_CT[1, used:end] = tokens[piece][1:]
            row_CT[2, used:end] = segment
            row_CT[3, used:end] = np.arange(taken)
            used, self.offset = end, self.offset + taken
            if self.offset == len(tokens) - 1:
                self.section, self.offset = self.section + self._stride, 0
        return dict(zip(("inputs", "targets", "segments", "positions"), row_CT, strict=True))


class _Rows(grain.IterDataset[Batch]):
    """The rows `first` to `last` of each global batch."""

    def __init__(self, tokens: grain.MapDataset[np.ndarray], config: Config, rows: range) -> None:
        super().__init__()
        self._tokens, self._config, self._rows = tokens, config, rows

    def __iter__(self) -> grain.DatasetIterator[Batch]:
        return _RowsIterator(self._tokens, self._config, self._rows)


class _RowsIterator(grain.DatasetIterator[Batch]):
    def __init__(self, tokens: grain.MapDataset[np.ndarray], config: Config, rows: range) -> None:
        super().__init__()
        # Grain's type allows for elements that a filter took out; there is none.
        read = cast("Callable[[int], np.ndarray]", tokens.__getitem__)
        stride = config.train.batch_size
        self._streams = {row: RowStream(read, config.data.length, row, stride) for row in rows}

    def __next__(self) -> Batch:
        return _stack([stream.next_row() for stream in self._streams.values()])

    def get_state(self) -> dict[str, Any]:
        return {"rows": {str(row): [stream.section, stream.offset] for row, stream in self._streams.items()}}

    def set_state(self, state: dict[str, Any]) -> None:
        missing = sorted(row for row in self._streams if str(row) not in state["rows"])
        if missing:
            raise DataError(
                f"the saved place in the data is that of the rows {', '.join(state['rows'])}; this process needs "
                f"{missing} as well: merge the 'rows' that the processes saved, or resume with as many as there were"
            )
        for row, stream in self._streams.items():
            stream.section, stream.offset = state["rows"][str(row)]


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
    corpus: Corpus, tokenizer: Tokenizer, config: Config, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator[Batch]:
    """This process's rows of each training batch, endlessly; no padding.

    The iterator's `get_state` gives a dictionary for JSON that tells the place behind the last batch handed out,
    whatever has been prefetched; `set_state` goes there. States of several processes are merged by joining their
    "rows", and a merged one fits any number of processes.

    Returns:
      An iterator over [B / process_count, T] batches.

    Raises:
      DataError: the batch cannot be shared evenly, or there is no text.
    """
    tokens = grain.MapDataset.source(TokenizedSections(corpus.train, tokenizer))
    if config.data.shuffle:
        # Grain adds the epoch to the seed; spread out, seeds 0 and 1 don't share their orders.
        tokens = tokens.shuffle(seed=int(np.random.SeedSequence(config.train.seed % 2**64).generate_state(1)[0]))
    rows = _rows_of(config, process_index, process_count)
    dataset = _Rows(tokens.repeat(), config, rows)
    return _Prefetched(iter(dataset), config.data.prefetch)


def held_out_batches(
    corpus: Corpus, tokenizer: Tokenizer, config: Config, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """This process's rows of the batches that hold all of the held-out text once, in order; the last one is padded.

    Every process gets the same number of batches.

    Raises:
      DataError: the batch cannot be shared evenly.
    """
    rows = _rows_of(config, process_index, process_count)
    tokens = TokenizedSections(corpus.held_out, tokenizer)
    stream = RowStream(tokens.__getitem__, config.data.length, first=0, stride=1, end=len(tokens))

    def batches() -> Iterator[Batch]:
        while not stream.exhausted():
            batch = [stream.next_row() for _ in range(config.train.batch_size)]
            yield _stack(batch[rows.start : rows.stop])

    return batches()


def padding_efficiency(batch: Batch) -> float:
    """The share of a batch's positions that hold text."""
    return float(np.mean(batch["segments"] > 0))


def _rows_of(config: Config, process_index: int, process_count: int) -> range:
    share, rest = divmod(config.train.batch_size, process_count)
    if rest or not share:
        raise DataError(
            f"--train.batch_size={config.train.batch_size} rows cannot be shared evenly by {process_count} processes"
        )
    return range(process_index * share, (process_index + 1) * share)


def _stack(rows: list[Batch]) -> Batch:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
