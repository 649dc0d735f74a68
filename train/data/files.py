"""Text from files: plain text, one JSON object per line, or one pair per line. Only an index is kept in memory."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from configs import schema
from train.data.pairs import hold_out_unseen, text_number
from train.data.sections import (
    BadRecords,
    Corpus,
    DataError,
    RecordError,
    Section,
    cuts,
    digest,
    hold_out_last,
    hold_out_tails,
    next_cut,
)
from train.data.sources import Progress

# How often a scan tells how far it is.
REPORT_BYTES = 8 * 2**20


@dataclass(frozen=True)
class IndexedFile:
    """A file as it was when it was indexed."""

    path: str
    size: int
    modified: int  # nanoseconds

    def check(self, file: BinaryIO) -> None:
        """Raises DataError if the open file is not what was indexed."""
        now = os.fstat(file.fileno())
        if (now.st_size, now.st_mtime_ns) != (self.size, self.modified):
            raise DataError(f"the file {self.path} has changed while it was in use; start again, and leave it as it is")

    def read(self, start: int, end: int) -> bytes:
        """Bytes start..end. Raises DataError if the file went away or is another one than was indexed."""
        try:
            with open(self.path, "rb", buffering=0) as file:
                self.check(file)
                return os.pread(file.fileno(), end - start, start)
        except OSError as error:
            raise DataError(
                f"the file {self.path} cannot be read any more at offset {start}: {error.strerror}"
            ) from None


class TextSections:
    """Sections of text files; `index_N4` has a row (file, start, end, last) in bytes for each."""

    def __init__(self, files: list[IndexedFile], index_N4: np.ndarray) -> None:
        self._files, self._index_N4 = files, index_N4

    def __len__(self) -> int:
        return len(self._index_N4)

    def __getitem__(self, index: int, /) -> Section:
        number, start, end, last = self._index_N4[index].tolist()
        return Section(self._files[number].read(start, end).decode(), bool(last))


class JsonlSections:
    """Sections of records; `index_N6` has a row (file, line's start and end, section's start and end, last) for each.

    The section's place counts bytes of the record's text, the line's bytes of the file.
    """

    def __init__(self, files: list[IndexedFile], field: str, index_N6: np.ndarray) -> None:
        self._files, self._field, self._index_N6 = files, field, index_N6

    def __len__(self) -> int:
        return len(self._index_N6)

    def __getitem__(self, index: int, /) -> Section:
        number, line_start, line_end, start, end, last = self._index_N6[index].tolist()
        file = self._files[number]
        where = f"{file.path}, offset {line_start}"
        record = _parse(file.read(line_start, line_end).decode(), where)
        return Section(_text_of(record, self._field, where)[start:end].decode(), bool(last))


class PairLines:
    """Pairs of lines with tabs; `index_N3` has a row (file, start, end) in bytes for each."""

    def __init__(self, files: list[IndexedFile], index_N3: np.ndarray) -> None:
        self._files, self._index_N3 = files, index_N3

    def __len__(self) -> int:
        return len(self._index_N3)

    def __getitem__(self, index: int, /) -> Section:
        number, start, end = self._index_N3[index].tolist()
        file = self._files[number]
        return _pair(file.read(start, end).decode(), f"{file.path}, offset {start}")


def open_text(config: schema.Data, pattern: str, progress: Progress) -> Corpus:
    """UTF-8 files, each a document; a tail of each is held out. Line ends stay as they are.

    Raises:
      DataError: no file matches, there is too little text, or a file is not UTF-8.
    """
    rows, bad = array("q"), BadRecords(config.bad_records)
    files, hashes = [], {}
    for scan in _scan(pattern, progress):
        start, buffer = 0, b""
        while buffer := buffer + scan.file.read(config.section_bytes + 1 - len(buffer)):
            cut = next_cut(buffer, config.section_bytes)
            scan.read(buffer[:cut])
            with bad.tried():
                _decode(buffer[:cut], scan.path, start)
                rows.extend((len(files), start, start + cut, False))
            start, buffer = start + cut, buffer[cut:]
        if rows and rows[-4] == len(files):
            rows[-1] = True
        files.append(scan.indexed)
        hashes[scan.path] = scan.finish()
    index_N4 = np.array(rows, np.int64).reshape(-1, 4)
    held_out_N = hold_out_tails(index_N4[:, 0], config.held_out, config.source)
    train, held_out = (TextSections(files, index_N4[chosen_N]) for chosen_N in (~held_out_N, held_out_N))
    description = f"{len(files)} text file(s) {pattern}"
    return Corpus(train, held_out, digest(hashes), description, hashes, skipped=bad.skipped)


def open_jsonl(config: schema.Data, pattern: str, progress: Progress) -> Corpus:
    """Files with one JSON object per line, whose `data.field` is a document; the last records are held out.

    Raises:
      DataError: no file matches, there is too little text, or a line is not UTF-8, not JSON, or lacks the field.
    """
    rows, record_of_row, records, bad = array("q"), array("q"), 0, BadRecords(config.bad_records)
    files, hashes = [], {}
    for scan in _scan(pattern, progress):
        start = 0
        for number, line in enumerate(scan.file, start=1):
            scan.read(line)
            if line.strip():
                with bad.tried():
                    where = f"{scan.path}, line {number}, offset {start}"
                    record = _parse(_decode(line, scan.path, start), where)
                    ends = cuts(_text_of(record, config.field, where), config.section_bytes)
                    for cut, end in zip([0, *ends], ends, strict=False):
                        rows.extend((len(files), start, start + len(line), cut, end, end == ends[-1]))
                        record_of_row.append(records)
                    records += 1
            start += len(line)
        files.append(scan.indexed)
        hashes[scan.path] = scan.finish()
    index_N6 = np.array(rows, np.int64).reshape(-1, 6)
    held_out_N = hold_out_last(np.array(record_of_row), config.held_out, config.source)
    train, held_out = (JsonlSections(files, config.field, index_N6[n]) for n in (~held_out_N, held_out_N))
    description = f"{records} records in {len(files)} file(s) {pattern}"
    return Corpus(train, held_out, digest(hashes), description, hashes, skipped=bad.skipped)


def open_tsv(config: schema.Data, pattern: str, progress: Progress) -> Corpus:
    """UTF-8 files with lines SOURCE<TAB>TARGET, without quoting; empty lines don't count.

    Evenly spread lines are held out, but for those whose source or target stands in the others as well.

    Raises:
      DataError: no file matches, there are too few pairs, or a line is not UTF-8 or not two texts.
    """
    rows, texts, files, hashes, bad = array("q"), array("q"), [], {}, BadRecords(config.bad_records)
    for scan in _scan(pattern, progress):
        start = 0
        for number, line in enumerate(scan.file, start=1):
            scan.read(line)
            if line.strip():
                with bad.tried():
                    pair = _pair(_decode(line, scan.path, start), f"{scan.path}, line {number}, offset {start}")
                    rows.extend((len(files), start, start + len(line)))
                    texts.extend((text_number(pair.source), text_number(pair.text)))
            start += len(line)
        files.append(scan.indexed)
        hashes[scan.path] = scan.finish()
    index_N3, texts_N2 = np.array(rows, np.int64).reshape(-1, 3), np.array(texts, np.int64).reshape(-1, 2)
    chosen_N = hold_out_tails(np.arange(len(index_N3)), config.held_out, config.source)
    held_out_N = hold_out_unseen(chosen_N, texts_N2, config.source)
    train, held_out = (PairLines(files, index_N3[n]) for n in (~chosen_N, held_out_N))
    dropped = len(index_N3) - len(train) - len(held_out)
    description = (
        f"{len(train)} pairs {config.languages} of {len(files)} file(s) {pattern}, and {len(held_out)} held out "
        f"({dropped} more are left out: the others hold the same text)"
    )
    return Corpus(train, held_out, digest(hashes), description, hashes, skipped=bad.skipped)


class _Scan:
    """One reading of a file from start to end, with its hash and its share of the progress."""

    def __init__(self, path: str, file: BinaryIO, report: Callable[[int], object]) -> None:
        status = os.fstat(file.fileno())
        self.path, self.file = path, file
        self.indexed = IndexedFile(path, status.st_size, status.st_mtime_ns)
        self._hash, self._report = hashlib.sha256(), report

    def read(self, piece: bytes) -> None:
        """Takes note of the bytes that were read."""
        self._hash.update(piece)
        self._report(len(piece))

    def finish(self) -> str:
        """The file's SHA-256 (hex). Raises DataError if it has changed since it was opened."""
        self.indexed.check(self.file)
        return self._hash.hexdigest()


def _scan(pattern: str, progress: Progress) -> Iterator[_Scan]:
    """Opens the files that match, in the order of their names."""
    paths = sorted(path for path in glob.glob(os.path.expanduser(pattern), recursive=True) if os.path.isfile(path))
    if not paths:
        hint = f"; it is a folder, and {pattern}/** are the files in it" if os.path.isdir(pattern) else ""
        raise DataError(f"no file matches {pattern} (seen from {os.getcwd()}){hint}")
    total, done, shown = sum(map(os.path.getsize, paths)), 0, 0

    def report(count: int) -> None:
        nonlocal done, shown
        done += count
        if done - shown >= REPORT_BYTES:
            shown = done
            progress("Reading text", done, total)

    for path in paths:
        try:
            with open(path, "rb") as file:
                yield _Scan(path, file, report)
        except OSError as error:
            raise DataError(f"the file {path} cannot be read: {error.strerror}") from None


def _decode(piece: bytes, path: str, start: int) -> str:
    try:
        return piece.decode()
    except UnicodeDecodeError as error:
        raise RecordError(
            f"the file {path} is not UTF-8: byte {piece[error.start]:#04x} at offset {start + error.start} "
            f"({error.reason}); convert it, for instance with iconv -t UTF-8"
        ) from None


def _pair(line: str, where: str) -> Section:
    columns = [column.strip() for column in line.removeprefix("\ufeff").split("\t")]
    if len(columns) != 2 or not all(columns):
        found = f"{len(columns)} column(s)" if len(columns) != 2 else f"an empty {'target' if columns[0] else 'source'}"
        raise RecordError(f"{where}: two texts with a tab between them are needed, SOURCE<TAB>TARGET, this has {found}")
    return Section(columns[1], last=True, source=columns[0])


def _parse(line: str, where: str) -> object:
    try:
        return json.loads(line.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where}: not JSON ({error})") from None


def _text_of(record: object, field: str, where: str) -> bytes:
    if not isinstance(record, dict):
        raise RecordError(f"{where}: a JSON object is needed, this is a {type(record).__name__}")
    if not isinstance(record.get(field), str):
        problem = "is not text" if field in record else "is missing"
        raise RecordError(f"{where}: --data.field={field} {problem}; the fields are {', '.join(record) or 'none'}")
    try:
        return record[field].encode()
    except UnicodeEncodeError:
        raise RecordError(f"{where}: the text in {field} has half of a surrogate pair, which is no character") from None
