"""The default corpus: the standard library of the running Python, as a TFDS dataset made without TensorFlow.

Three kinds of document, in this order: the help topics of `pydoc_data`; for each module its docstrings as one
prose document; its source with the docstrings cut out, so that no text stands in the corpus twice.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import io
import os
import platform
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

# Not text to learn from: the tests and what pip installed beside the library; compiled files; the grammar tool
# that newer Pythons lack and its fixtures; tables of character codes; the help topics as Python source.
EXCLUDED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3", "encodings"}
    | {"pydoc_data"}
)
# Written when Python is installed: full of the machine's own paths.
EXCLUDED_PREFIX = "_sysconfigdata"
HELD_OUT_ONE_IN = 20
PARSER_VERSION = "1.0.0"


@dataclass(frozen=True)
class Library:
    """What the corpus is made from: module texts by relative POSIX path, help topics by name, both sorted."""

    modules: dict[str, bytes]
    topics: dict[str, str]

    def fingerprint(self) -> str:
        """SHA-256 (hex) over all names and contents."""
        digest = hashlib.sha256(PARSER_VERSION.encode())
        for name, content in (*self.modules.items(), *((n, t.encode()) for n, t in self.topics.items())):
            digest.update(f"{name}\0{len(content)}\0".encode())
            digest.update(content)
        return digest.hexdigest()


def read_library() -> Library:
    """The running interpreter's library. Takes about a tenth of a second."""
    root = Path(sysconfig.get_paths()["stdlib"])
    modules: dict[str, bytes] = {}
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in EXCLUDED_FOLDERS]
        for name in names:
            if name.endswith(".py") and not name.startswith(EXCLUDED_PREFIX):
                path = Path(folder, name)
                modules[path.relative_to(root).as_posix()] = path.read_bytes()
    topics: dict[str, str] = {}
    with contextlib.suppress(ImportError):  # some distributions ship the library without its help
        topics |= importlib.import_module("pydoc_data.topics").topics
    return Library(dict(sorted(modules.items())), dict(sorted(topics.items())))


def interpreter() -> str:
    """The running interpreter, such as `cpython-3.11.7`."""
    return f"{sys.implementation.name}-{platform.python_version()}"


def is_held_out(name: str) -> bool:
    """Whether the module or topic of this name belongs to the held-out split: a fixed one in twenty."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0


def documents(library: Library, held_out: bool, progress: Callable[[int], object]) -> Iterator[tuple[str, str]]:
    """Yields (name, text) of one split; calls progress(bytes read) after each file. Empty texts are left out."""
    for name, text in library.topics.items():
        if is_held_out(name) == held_out:
            yield f"topics/{name}", text.strip() + "\n"
    for name, content in library.modules.items():
        if is_held_out(name) == held_out:
            prose, source = separate_docstrings(content)
            for kind, text in (("docstrings", prose), ("source", source)):
                if text.strip():
                    yield f"{kind}/{name}", text
            progress(len(content))


def separate_docstrings(content: bytes) -> tuple[str, str]:
    """Splits a module into (its docstrings as prose, its source without them); a file that is not Python is source.

    A body that was nothing but its docstring gets a `pass`, so that the source still parses.
    """
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        source = content.decode(encoding)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old code
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return "", content.decode("utf-8", errors="replace")
    # The positions in an ast count UTF-8 bytes.
    lines = source.encode().splitlines(keepends=True)
    prose = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node, clean=False)
            if text is not None:
                prose.append((node.body[0].lineno, cleandoc(text).strip()))
                _cut(lines, node.body[0], alone=len(node.body) == 1 and not isinstance(node, ast.Module))
    texts = [text for _, text in sorted(prose, key=lambda pair: pair[0]) if text]
    return "\n\n".join(texts) + "\n" if texts else "", b"".join(lines).decode()


def _cut(lines: list[bytes], docstring: ast.stmt, alone: bool) -> None:
    """Cuts a docstring out of `lines`, in place and without changing their number."""
    first, last = docstring.lineno - 1, (docstring.end_lineno or docstring.lineno) - 1
    before, after = lines[first][: docstring.col_offset], lines[last][docstring.end_col_offset :]
    whole_lines = not before.strip() and not after.strip() and not before.startswith(b"\xef\xbb\xbf")
    for number in range(first, last + 1):
        lines[number] = b""
    if alone or not whole_lines:
        lines[first] = before + b"pass" + after


class Stdlib(tfds.core.GeneratorBasedBuilder):
    """Python's standard library; its config is named after the interpreter and the library's fingerprint."""

    VERSION = tfds.core.Version(PARSER_VERSION)

    def __init__(self, *, library: Library, progress: Callable[[int, int], object], **options: Any) -> None:
        """Calls progress(bytes read, bytes in all) while the dataset is being prepared."""
        self.library = library
        self._progress = progress
        self._read = 0
        name = f"{interpreter()}-{library.fingerprint()[:12]}"
        config = tfds.core.BuilderConfig(name=name, description=f"The standard library of Python {sys.version}.")
        super().__init__(config=config, file_format="array_record", **options)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "name": tfds.features.Text()})
        return self.dataset_info_from_configs(
            description="Help topics, docstrings and source of Python's standard library.",
            features=features,
            disable_shuffling=True,  # the order of the documents is part of what is promised
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {"train": self._generate_examples(False), "held_out": self._generate_examples(True)}

    def _generate_examples(self, held_out: bool) -> Iterator[tuple[int, dict[str, str]]]:
        for key, (name, text) in enumerate(documents(self.library, held_out, self._advance)):
            yield key, {"text": text, "name": name}

    def _advance(self, count: int) -> None:
        self._read += count
        self._progress(self._read, sum(map(len, self.library.modules.values())))
