"""Text from TFDS datasets, read at random places and without TensorFlow."""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import importlib
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any, cast

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core import constants
from tensorflow_datasets.core.download import downloader

from configs import schema
from train.data import libreoffice, stdlib
from train.data.pairs import languages
from train.data.sections import Corpus, DataError, RecordError, Section, check_enough, cuts, digest, hold_out_last
from train.data.sources import Progress

# Splits up to this size are scanned once when opened, so that long documents can be cut into sections.
MAX_INDEXED_BYTES = 256 * 2**20
HELD_OUT_SPLITS = ("held_out", "validation", "valid", "dev", "test")


class WholeDocuments:
    """Documents of a split, `numbers` of them, each one section, or pairs if `source_field` is given."""

    def __init__(self, source: Sequence[Any], field: str, numbers: range, source_field: str = "") -> None:
        self._source, self._field, self._numbers, self._source_field = source, field, numbers, source_field

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int, /) -> Section:
        number = self._numbers[index]
        if not self._source_field:
            return Section(_document(self._source, number, self._field).decode(), last=True)
        example = _example(self._source, number)
        text, source = (example[field].decode().strip() for field in (self._field, self._source_field))
        return Section(text, last=True, source=source)

    def hold_out(self, share: float, source: str) -> tuple[WholeDocuments, WholeDocuments]:
        """Divides the documents into (all others, the last ones)."""
        check_enough(len(self), source)
        count = min(max(1, round(share * len(self))), len(self) - 1)
        train, held_out = (
            WholeDocuments(self._source, self._field, numbers, self._source_field)
            for numbers in (self._numbers[:-count], self._numbers[-count:])
        )
        return train, held_out


class CutDocuments:
    """Sections of a split's documents; `index_N4` has a row (document, start, end, last) in bytes for each."""

    def __init__(self, source: Sequence[Any], field: str, index_N4: np.ndarray) -> None:
        self._source, self._field, self._index_N4 = source, field, index_N4
        # Neighbouring sections share a document; read in order, it need not be decoded for each.
        self._document = lru_cache(maxsize=8)(lambda number: _document(source, number, field))

    def __len__(self) -> int:
        return len(self._index_N4)

    def __getitem__(self, index: int, /) -> Section:
        document, start, end, last = self._index_N4[index].tolist()
        return Section(self._document(document)[start:end].decode(), bool(last))

    def hold_out(self, share: float, source: str) -> tuple[CutDocuments, CutDocuments]:
        """Divides the sections into (those of other documents, those of the last documents)."""
        held_out_N = hold_out_last(self._index_N4[:, 0], share, source)
        train, held_out = self._index_N4[~held_out_N], self._index_N4[held_out_N]
        return CutDocuments(self._source, self._field, train), CutDocuments(self._source, self._field, held_out)


def open_stdlib(config: schema.Data, progress: Progress) -> Corpus:
    """The running interpreter's standard library; prepared in a few seconds the first time, then kept.

    Raises:
      DataError: the interpreter's library is not in files, or the folder for the dataset cannot be written.
    """
    library = stdlib.read_library()
    if not library.modules:
        raise DataError("--data.source=stdlib: this Python's library is not in files; use --data.source=text:GLOB")

    def make() -> stdlib.Stdlib:
        what = "Preparing the text of Python's library"
        return stdlib.Stdlib(
            library=library,
            progress=lambda done, total: progress(what, done, total),
            data_dir=config.directory or None,
        )

    builder = _prepared_with_bar(make, config.source)
    train, held_out = (_sections(builder, split, replace(config, field="text")) for split in ("train", "held_out"))
    return Corpus(train, held_out, library.fingerprint(), f"the standard library of {stdlib.interpreter()}")


def open_libreoffice(config: schema.Data, folder: str, progress: Progress) -> Corpus:
    """LibreOffice's help in two languages, from Debian's packages in `folder`, or from where apt-get has them.

    Prepared in about ten seconds the first time, then kept.

    Raises:
      DataError: the packages are not there and cannot be fetched, or cannot be read.
    """
    names = languages(config)
    if folder:
        place = Path(folder).expanduser()
    else:
        place = Path(config.directory or constants.DATA_DIR).expanduser() / "downloads" / "libreoffice"
        libreoffice.fetch_packages(names, place)
    packages = libreoffice.find_packages(names, place)

    def make() -> libreoffice.LibreOfficeHelp:
        return libreoffice.LibreOfficeHelp(
            packages=packages,
            progress=lambda done, total: progress("Reading LibreOffice's help", done, total),
            data_dir=config.directory or None,
        )

    builder = _prepared_with_bar(make, config.source)
    train, held_out = (_sections(builder, split, config) for split in ("train", "held_out"))
    facts = cast("dict[str, Any]", builder.info.metadata)
    description = (
        f"LibreOffice's help, {config.languages}: {len(train)} pairs and {len(held_out)} held out, of "
        f"{facts['paragraphs']} paragraphs; left out: "
        + ", ".join(f"{count} {why}" for why, count in facts["left out"].items())
    )
    return Corpus(train, held_out, libreoffice.fingerprint(packages), description)


def open_tfds(config: schema.Data, name: str) -> Corpus:
    """A TFDS dataset by `NAME[/CONFIG][:SPLIT]`, from `data.directory`, or prepared there as array_record.

    With `data.languages` it has to be one for translation (wmt*, ted_hrlr_translate, opus), and is read as pairs.

    SPLIT (`train` if not given) may be any expression of TFDS, such as `train[:10%]`. Held out is a split of one of the
    names in HELD_OUT_SPLITS that SPLIT does not mention; if there is none, the last of SPLIT's documents. Documents are
    cut into sections in splits of at most MAX_INDEXED_BYTES, by the dataset's metadata; in larger ones, which would
    have to be read to the end first, each document is one section. Text of a dataset is told by its metadata, not
    read again, for the fingerprint: TFDS gives changed text another version.

    Raises:
      DataError: there is no such dataset, config, split, field or language, or it cannot be prepared or be read without
        TensorFlow.
    """
    name, _, split = name.partition(":")
    builder = _prepared(lambda: _builder(name, config), config.source)
    info = builder.info
    if tfds.core.FileFormat.ARRAY_RECORD not in info.available_file_formats():
        raise DataError(
            f"--data.source={config.source} is prepared in {builder.data_dir} as {info.file_format.value}, which needs "  # type: ignore[union-attr]
            f"TensorFlow to read: move that away, or prepare it elsewhere with --data.directory; "
            f"by hand it is tfds build {name} --file_format=array_record"
        )
    split = split or "train"
    (_check_languages if config.languages else _check_field)(info.features, config)
    train = _sections(builder, split, config)
    mentioned = re.findall(r"\w+", split)
    others = [other for other in HELD_OUT_SPLITS if other in info.splits and not {other, "all"} & set(mentioned)]
    if others:
        held_out = _sections(builder, others[0], config)
        if not len(train) or not len(held_out):
            raise DataError(f"--data.source={config.source}: split {others[0] if len(train) else split} holds no text")
    else:
        train, held_out = train.hold_out(config.held_out, config.source)
    shards = {part.name: [part.shard_lengths, part.num_bytes] for part in info.splits.values()}
    fingerprint = digest([info.full_name, shards, split, config.languages or config.field])
    return Corpus(train, held_out, fingerprint, f"{info.full_name}, split {split}")


def _builder(name: str, config: schema.Data) -> tfds.core.DatasetBuilder:
    for group in ("text", "translate", "summarization", "question_answering", "text_simplification"):
        # Of its older datasets TFDS imports the groups one by one, and without TensorFlow fails before these.
        with contextlib.suppress(ImportError):
            importlib.import_module(f"tensorflow_datasets.{group}")
    try:
        return tfds.builder(name, data_dir=config.directory or None, try_gcs=False)
    except tfds.core.DatasetNotFoundError:
        folder = config.directory or "the default folder of TFDS"
        near = difflib.get_close_matches(name.partition("/")[0], tfds.list_builders(with_community_datasets=False), n=1)
        raise DataError(
            f"--data.source={config.source}: TFDS has no dataset {name}, and none is prepared in {folder}"
            + (f"; did you mean tfds:{near[0]}?" if near else "")
        ) from None
    except Exception as error:  # a config that does not exist raises whatever the dataset's code does
        raise DataError(f"--data.source={config.source}: {_one_line(error)}") from None


def _prepared(make: Callable[[], tfds.core.DatasetBuilder], source: str) -> tfds.core.DatasetBuilder:
    """A builder whose dataset is prepared: once, however many processes ask for it at the same time."""
    with _quiet():
        builder = make()
        if builder.is_prepared():
            return builder
        folder = Path(os.fspath(builder.data_path)).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / ".lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the file, or with the process
                builder = make()  # another process may have been first; a builder looks only when it is made
                if not builder.is_prepared():
                    download = tfds.download.DownloadConfig(try_download_gcs=False)
                    builder.download_and_prepare(download_config=download, file_format="array_record")
        except DataError:
            raise
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0].replace("_", "-")
            raise DataError(
                f"--data.source={source} cannot be prepared: its own code needs {package}, which is not installed "
                f"(reading it afterwards does not); pip install {package}, or prepare it where that is, with "
                f"tfds build --file_format=array_record, and name the folder with --data.directory"
            ) from error
        except Exception as error:  # downloads and datasets' own code can fail in any way
            raise DataError(
                f"--data.source={source} cannot be prepared in {folder} ({_one_line(error)}); --data.directory names "
                f"another folder to find or keep it in"
            ) from error
        return builder


def _prepared_with_bar(make: Callable[[], tfds.core.DatasetBuilder], source: str) -> tfds.core.DatasetBuilder:
    """As `_prepared`, for our own builders, which count bytes, so that TFDS need not show how far it is."""
    tfds.disable_progress_bar()
    try:
        return _prepared(make, source)
    finally:
        tfds.enable_progress_bar()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS off stdout, which belongs to the program, from warnings about what is meant, and from retrying a
    download for minutes where there is no network."""
    urllib3 = getLogger("urllib3")
    verbosity, level, retries = logging.get_verbosity(), urllib3.level, downloader.MAX_RETRIES
    logging.set_verbosity(logging.ERROR)
    urllib3.setLevel(ERROR)
    downloader.MAX_RETRIES = 4
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        urllib3.setLevel(level)
        downloader.MAX_RETRIES = retries


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def _sections(builder: tfds.core.DatasetBuilder, split: str, config: schema.Data) -> WholeDocuments | CutDocuments:
    info = builder.info
    try:
        source = builder.as_data_source(split)  # pyright: ignore[reportCallIssue] (TFDS hides the arguments in a decorator)
    except ValueError as error:
        raise DataError(
            f"--data.source={config.source}: no split {split} ({_one_line(error)}); it has {', '.join(info.splits)}"
        ) from None
    if config.languages:
        source_field, field = languages(config)
        return WholeDocuments(source, field, range(len(source)), source_field)
    mean = info.dataset_size / max(1, sum(part.num_examples for part in info.splits.values()))
    if mean * len(source) > MAX_INDEXED_BYTES:
        return WholeDocuments(source, config.field, range(len(source)))
    return CutDocuments(source, config.field, _index(source, config.field, config.section_bytes))


def _check_field(features: Any, config: schema.Data) -> None:
    fields = [name for name, feature in features.items() if isinstance(feature, tfds.features.Text)]
    if config.field not in fields:
        raise DataError(
            f"--data.field={config.field} is no text in {config.source}; "
            f"fields with text: {', '.join(fields) or 'none'}"
        )


def _check_languages(features: Any, config: schema.Data) -> None:
    if not isinstance(features, tfds.features.Translation):
        raise DataError(
            f"--data.languages={config.languages}: {config.source} holds no pairs to translate; its fields are "
            f"{', '.join(features)}; without --data.languages one of them is read as text"
        )
    missing = [name for name in languages(config) if name not in features]
    if missing:
        raise DataError(
            f"--data.languages={config.languages}: {config.source} has no {' and no '.join(missing)}; "
            f"its languages are {', '.join(features.languages)}"
        )


def _example(source: Sequence[Any], number: int) -> Any:
    """One example. Raises RecordError, which names its number and the dataset's folder."""
    try:
        return source[number]
    except Exception as error:  # what array_record and the decoders of TFDS raise has no class of its own
        folder = getattr(getattr(source, "dataset_info", None), "data_dir", "the dataset")
        raise RecordError(f"{folder}: example {number} cannot be read ({_one_line(error)})") from error


def _document(source: Sequence[Any], number: int, field: str) -> bytes:
    return _example(source, number)[field]


def _index(source: Sequence[Any], field: str, size: int) -> np.ndarray:
    """The index of `CutDocuments` for all documents of a split."""
    rows = []
    for number in range(len(source)):
        ends = cuts(_document(source, number, field), size)
        rows += [(number, start, end, end == ends[-1]) for start, end in zip([0, *ends], ends, strict=False)]
    return np.array(rows, np.int64).reshape(-1, 4)
