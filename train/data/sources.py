"""Opens the text that `--data.source` names."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from configs import schema
from train.data.copying import COPIED, Copying
from train.data.coreference import open_coreference
from train.data.in_context import Lookup, Regression
from train.data.induction import PERIODS, Induction
from train.data.lags import FAR, Lags
from train.data.pairs import languages
from train.data.recall import KEYS, Recall
from train.data.reversal import open_reversal
from train.data.sections import Corpus, DataError, Section, Sections, check_unchanged
from train.data.tasks import number_behind, open_task

__all__ = ["Corpus", "DataError", "Progress", "Section", "Sections", "check_unchanged", "open_corpus"]

# Called as progress(what, bytes read, bytes in all).
Progress = Callable[[str, int, int], object]
FORMS = {
    "stdlib": "stdlib",
    "tfds": "tfds:NAME[/CONFIG][:SPLIT]",
    "text": "text:GLOB",
    "jsonl": "jsonl:GLOB",
    "tsv": "tsv:FILE",
    "libreoffice": "libreoffice[:FOLDER]",
    "coreference": "coreference",
    "induction": "induction",
    "recall": "recall[:PAIRS]",
    "copy": "copy[:DISTANCE]",
    "regression": "regression[:DIMENSIONS]",
    "lookup": "lookup[:KEYS]",
    "lags": "lags",
    "reversal": "reversal",
}
NAMES_ALONE = ("stdlib", "coreference", "induction", "lags", "reversal")
MADE_UP = ("induction", "recall", "copy", "regression", "lookup", "lags", "reversal")
# Whether each holds pairs, which --data.languages asks for; tfds has datasets of both sorts.
PAIRS = {
    "stdlib": False, "text": False, "jsonl": False, "tsv": True, "libreoffice": True, "coreference": False,
    "induction": False, "recall": False, "copy": False, "regression": False, "lookup": False, "lags": False,
    "reversal": True,
}  # fmt: skip


def open_corpus(config: schema.Data, progress: Progress | None = None) -> Corpus:
    """Opens the corpus; what takes long (the first preparation, indexing large files) shows a bar on stderr.

    Args:
      config: `source` is one of
        `stdlib`: the running Python's own library, see `train.data.stdlib`;
        `tfds:NAME[/CONFIG][:SPLIT]`: a TFDS dataset of text, prepared if need be, see `train.data.datasets`;
        `text:GLOB`: UTF-8 files, each a document;  `jsonl:GLOB`: files with one JSON object, a document, per line.
        `tsv:FILE`: lines with two texts, one the translation of the other; for these three see `train.data.files`;
        `libreoffice[:FOLDER]`: LibreOffice's help in two languages, see `train.data.libreoffice`;
        `coreference`: generated sentences in which it is asked what *it* stands for, see `train.data.coreference`;
        `induction`, `recall[:PAIRS]`, `copy[:DISTANCE]`, `lags`, `regression[:DIMENSIONS]`, `lookup[:KEYS]`: rows that
        are made up, see the files of these names beside, and `train.data.in_context` for the last two;
        `reversal`: rows of words and the same words backwards, see `train.data.reversal`.
        With `languages` set, what is opened are pairs: sections with a source.
      progress: called instead of showing a bar.

    Raises:
      DataError: there is no such source, or no text (or no pairs, if asked for) in it, or it cannot be read.
    """
    kind, colon, rest = config.source.partition(":")
    needs_more = ":" in FORMS.get(kind, "").partition("[:")[0]
    if kind not in FORMS or (kind in NAMES_ALONE and colon) or (needs_more and not colon):
        near = difflib.get_close_matches(kind, FORMS, n=1)
        hint = f"; did you mean {FORMS[near[0]]}?" if near else ""
        raise DataError(f"--data.source={config.source} is none of {', '.join(FORMS.values())}{hint}")
    if PAIRS.get(kind, bool(config.languages)):
        languages(config)
    elif config.languages:
        raise DataError(
            f"--data.languages={config.languages}: --data.source={config.source} holds no pairs to translate; "
            f"these may: {', '.join(FORMS[other] for other in FORMS if PAIRS.get(other, True))}"
        )
    if not 0 <= config.held_out < 1:
        raise DataError(f"--data.held_out={config.held_out} leaves nothing to train on; it is a share below 1")
    if kind == "coreference":
        return open_coreference(config)
    if kind in MADE_UP:
        return _open_made_up(config, kind, rest)
    with _bar() if progress is None else _as_given(progress) as report:
        if kind in ("text", "jsonl", "tsv"):
            from train.data import files

            open_files = {"text": files.open_text, "jsonl": files.open_jsonl, "tsv": files.open_tsv}[kind]
            return open_files(config, rest, report)
        # Importing TFDS takes about a second, Arrow and all; programs that read files need not wait for it.
        from train.data import datasets

        if kind == "stdlib":
            return datasets.open_stdlib(config, report)
        if kind == "libreoffice":
            return datasets.open_libreoffice(config, rest, report)
        return datasets.open_tfds(config, rest)


def _open_made_up(config: schema.Data, kind: str, rest: str) -> Corpus:
    if kind == "reversal":
        return open_reversal()
    if kind == "induction":
        if config.length <= PERIODS.start:
            raise DataError(f"--data.length={config.length}: nothing is repeated in rows of at most {PERIODS.start}")
        return open_task(Induction(config.length), "random words that repeat themselves, made up as they are needed")
    if kind == "recall":
        pairs = number_behind(config.source, rest, default=8, least=1, most=KEYS)
        return open_task(Recall(pairs), f"{pairs} keys and their values, made up as they are needed")
    if kind == "lags":
        if config.length <= FAR:
            raise DataError(f"--data.length={config.length}: nothing follows from others in rows of at most {FAR}")
        return open_task(Lags(config.length), "words that each follow from two others, made up as they are needed")
    if kind in ("regression", "lookup"):
        default, most = (1, 2) if kind == "regression" else (8, 16)
        number = number_behind(config.source, rest, default, least=1, most=most)
        pairs = config.length // 2
        task = Regression(number, pairs) if kind == "regression" else Lookup(number, pairs)
        return open_task(task, f"{pairs} examples of a function of each row's own, made up as they are needed")
    distance = number_behind(config.source, rest, default=32, least=COPIED, most=2**20)
    return open_task(Copying(distance), f"{COPIED} words that come again {distance} words later, made up as needed")


@contextmanager
def _as_given(progress: Progress) -> Iterator[Progress]:
    yield progress


@contextmanager
def _bar() -> Iterator[Progress]:
    """A progress bar on stderr that appears with the first report and goes away; one line if it is no terminal."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    bar = Bar(console=console, transient=True, disable=not console.is_terminal)
    tasks = {}

    def report(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total)
            if console.is_terminal:
                bar.start()
            else:
                console.print(f"{what} ({total / 2**20:.0f} MiB)")
        bar.update(tasks[what], completed=done, total=total)

    try:
        yield report
    finally:
        if bar.live.is_started:
            bar.stop()
