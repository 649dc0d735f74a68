"""Opens the text that `--data.source` names."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from configs import schema
from train.data.sections import Corpus, DataError, Section, Sections, check_unchanged

__all__ = ["Corpus", "DataError", "Progress", "Section", "Sections", "check_unchanged", "open_corpus"]

# Called as progress(what, bytes read, bytes in all).
Progress = Callable[[str, int, int], object]
KINDS = ("stdlib", "tfds", "text", "jsonl")


def open_corpus(config: schema.Data, progress: Progress | None = None) -> Corpus:
    """Opens the corpus; what takes long (the first preparation, indexing large files) shows a bar on stderr.

    Args:
      config: `source` is one of
        `stdlib`: the running Python's own library, see `train.data.stdlib`;
        `tfds:NAME[/CONFIG][:SPLIT]`: a TFDS dataset of text, prepared if need be, see `train.data.datasets`;
        `text:GLOB`: UTF-8 files, each a document;  `jsonl:GLOB`: files with one JSON object, a document, per line.
        For the last two see `train.data.files`.
      progress: called instead of showing a bar.

    Raises:
      DataError: there is no such source, or no text in it, or text that cannot be read.
    """
    kind, colon, rest = config.source.partition(":")
    if kind not in KINDS or (kind == "stdlib") == bool(colon):
        near = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f"; did you mean {near[0]}{'' if near[0] == 'stdlib' else ':...'}?" if near else ""
        raise DataError(
            f"--data.source={config.source} is none of stdlib, tfds:NAME[/CONFIG][:SPLIT], text:GLOB, jsonl:GLOB{hint}"
        )
    if not 0 <= config.held_out < 1:
        raise DataError(f"--data.held_out={config.held_out} leaves nothing to train on; it is a share below 1")
    with _bar() if progress is None else _as_given(progress) as report:
        if kind in ("stdlib", "tfds"):
            # Importing TFDS takes about a second, Arrow and all; programs that read files need not wait for it.
            from train.data import datasets

            return datasets.open_stdlib(config, report) if kind == "stdlib" else datasets.open_tfds(config, rest)
        from train.data import files

        return files.open_text(config, rest, report) if kind == "text" else files.open_jsonl(config, rest, report)


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
