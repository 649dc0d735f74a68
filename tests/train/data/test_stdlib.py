"""The default corpus: Python's own library, as a TFDS dataset."""

from __future__ import annotations

import ast
import dataclasses
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from configs import schema
from train.data import stdlib
from train.data.sources import DataError, check_unchanged, open_corpus

MODULE = '''#!/usr/bin/env python
"""About this.

    Indented.
        More.
"""
import os

class Empty(Exception): """Only a docstring."""

class Ünicode:
    """Größe."""; size = "é"

    def method(self):
        \'\'\'Does it.\'\'\'
        # A comment.
        return "not a docstring"

    async def nothing(self):
        "Nothing."
'''


OPEN_IT = """
import sys
from configs import schema
from train.data.sources import open_corpus
corpus = open_corpus(schema.Data(directory=sys.argv[1]))
assert "tensorflow" not in sys.modules and "jax" not in sys.modules
print(len(corpus.train), len(corpus.held_out), corpus.fingerprint)
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, str, int]]]:
    """A folder in which two processes prepared the dataset at once, and each one's (stdout, stderr, exit status)."""
    folder = tmp_path_factory.mktemp("tfds")
    command = [sys.executable, "-c", OPEN_IT, str(folder)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    return folder, [(*process.communicate(), process.returncode) for process in running]


@pytest.fixture(scope="module")
def config(prepared) -> schema.Data:
    return schema.Data(directory=str(prepared[0]))


@pytest.fixture(scope="module")
def corpus(config: schema.Data):
    return open_corpus(config, lambda *report: pytest.fail("was prepared a second time"))


def text_of(sections) -> str:
    return "".join(sections[index].text for index in range(len(sections)))


def without_docstrings(source: str) -> str:
    """The dump of a module's ast without docstrings and without bodies of only `pass`: computed apart from the code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            has_docstring = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            if has_docstring and ast.get_docstring(node) is not None:
                body = body[1:]
            node.body = [line for line in body if not isinstance(line, ast.Pass)]
    return ast.dump(tree)


def test_docstrings_leave_the_source_and_nothing_else_changes():
    prose, source = stdlib.separate_docstrings(MODULE.encode())
    assert prose == "About this.\n\nIndented.\n    More.\n\nOnly a docstring.\n\nGröße.\n\nDoes it.\n\nNothing.\n"
    assert source == (
        '#!/usr/bin/env python\nimport os\n\nclass Empty(Exception): pass\n\nclass Ünicode:\n    pass; size = "é"\n\n'
        '    def method(self):\n        # A comment.\n        return "not a docstring"\n\n'
        "    async def nothing(self):\n        pass\n"
    )


def test_source_without_docstrings_is_the_same_program():
    library = stdlib.read_library()
    for name in ("argparse.py", "typing.py", "collections/__init__.py", "email/message.py", "inspect.py"):
        _, source = stdlib.separate_docstrings(library.modules[name])
        assert without_docstrings(source) == without_docstrings(library.modules[name].decode())


def test_what_is_not_python_is_kept_as_source():
    assert stdlib.separate_docstrings(b'"""Doc."""\nprint "2"\n') == ("", '"""Doc."""\nprint "2"\n')


def test_tests_packages_and_machine_paths_are_not_read():
    for name in stdlib.read_library().modules:
        folders = name.split("/")[:-1]
        assert not {"test", "tests", "idle_test", "site-packages", "encodings", "pydoc_data"} & set(folders)
        assert "_sysconfigdata" not in name


def test_splits_hold_every_document_and_keep_a_file_together(corpus):
    library = stdlib.read_library()
    held_out = list(stdlib.documents(library, True, lambda _: None))
    assert text_of(corpus.held_out) == "".join(text for _, text in held_out)
    files = {name.split("/", 1)[1] for name, _ in held_out}
    train = text_of(corpus.train)
    kept_out = 0
    for name, content in library.modules.items():
        if name in files:
            kept_out += len(content)
            _, source = stdlib.separate_docstrings(content)
            assert not source.strip() or source not in train
        elif name.startswith("e"):  # parsing all of them takes seconds
            assert all(text in train for text in stdlib.separate_docstrings(content))
    assert 0.02 < kept_out / sum(map(len, library.modules.values())) < 0.1


def test_a_changed_library_is_another_dataset():
    library = stdlib.read_library()
    changed = dataclasses.replace(library, modules=library.modules | {"os.py": library.modules["os.py"] + b"\n"})
    assert changed.fingerprint() != library.fingerprint()


def test_fingerprint_is_recognized_again_and_a_change_is_told(config, corpus):
    record = json.loads(json.dumps(open_corpus(config).record()))
    check_unchanged(corpus, record)
    with pytest.raises(DataError, match=r"the text has changed since the run began.*new run"):
        check_unchanged(corpus, record | {"fingerprint": "0" * 64})


def test_two_processes_prepare_at_once_without_tensorflow_and_keep_stdout_clean(prepared):
    folder, results = prepared
    assert [status for *_, status in results] == [0, 0], results
    assert results[0][0] == results[1][0]
    assert results[0][0].count("\n") == 1
    assert len(list(folder.glob("stdlib/*/1.0.0/*.array_record*"))) == 2
    # One of them did the work.
    assert sorted(stderr for _, stderr, _ in results)[0] == ""
    assert sorted(stderr for _, stderr, _ in results)[1].startswith("Preparing the text of Python's library (")
    assert not list(folder.glob("stdlib/*/incomplete*"))


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"stdlib cannot be prepared in .*--data.directory"):
        open_corpus(schema.Data(directory=str(tmp_path / "file")))
