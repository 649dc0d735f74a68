"""The default corpus: Python's own library, as a TFDS dataset."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
import warnings

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


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> schema.Data:
    return schema.Data(directory=str(tmp_path_factory.mktemp("tfds")))


@pytest.fixture(scope="module")
def corpus(config: schema.Data):
    return open_corpus(config, lambda *report: None)


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


def test_splits_hold_every_document_once_and_keep_a_file_together(corpus):
    library = stdlib.read_library()
    documents = [list(stdlib.documents(library, held_out, lambda _: None)) for held_out in (False, True)]
    for sections, split in zip((corpus.train, corpus.held_out), documents, strict=True):
        assert text_of(sections) == "".join(text for _, text in split)
        assert sum(sections[index].last for index in range(len(sections))) == len(split)
    files = [{name.split("/", 1)[1] for name, _ in split} for split in documents]
    assert not files[0] & files[1]
    assert {"argparse.py", "json/decoder.py"} <= files[0] | files[1]
    share = len(text_of(corpus.held_out)) / (len(text_of(corpus.train)) + len(text_of(corpus.held_out)))
    assert 0.02 < share < 0.1


def test_a_changed_library_is_another_dataset():
    library = stdlib.read_library()
    changed = dataclasses.replace(library, modules=library.modules | {"os.py": library.modules["os.py"] + b"\n"})
    assert changed.fingerprint() != library.fingerprint()


def test_fingerprint_is_recognized_again_and_a_change_is_told(config, corpus):
    record = open_corpus(config, lambda *report: pytest.fail("was prepared a second time")).record()
    check_unchanged(corpus, record)
    with pytest.raises(DataError, match="the text has changed since the run began.*new run"):
        check_unchanged(corpus, record | {"fingerprint": "0" * 64})


def test_two_processes_prepare_at_once_without_tensorflow_and_keep_stdout_clean(tmp_path):
    program = (
        "import sys; from configs import schema; from train.data.sources import open_corpus\n"
        f"corpus = open_corpus(schema.Data(directory={str(tmp_path)!r}))\n"
        "assert 'tensorflow' not in sys.modules and 'jax' not in sys.modules\n"
        "print(len(corpus.train), corpus.train[len(corpus.train) - 1].text == '', corpus.fingerprint)"
    )
    command = [sys.executable, "-c", program]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    results = [(*process.communicate(), process.returncode) for process in running]
    assert [status for *_, status in results] == [0, 0], results
    assert results[0][0] == results[1][0]
    assert results[0][0].count("\n") == 1
    assert len(list(tmp_path.glob("stdlib/*/1.0.0/*.array_record*"))) == 2


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"stdlib cannot be prepared in .*--data.directory"):
        open_corpus(schema.Data(directory=str(tmp_path / "file")))
