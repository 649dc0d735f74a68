"""Text from files: text:GLOB, jsonl:GLOB and tsv:FILE."""

from __future__ import annotations

import json
import os
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import schema
from train.data import files
from train.data.sections import cuts
from train.data.sources import Corpus, DataError, check_unchanged, open_corpus

TEXT = "".join(f"Zeile {number}: größer 中文 😀\r\n" for number in range(100))


def open_files(kind: str, pattern: object, **settings) -> Corpus:
    return open_corpus(schema.Data(source=f"{kind}:{pattern}", **{"section_bytes": 64} | settings))


def texts(sections) -> list[str]:
    return [sections[index].text for index in range(len(sections))]


def write_records(path, records: list[object]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@settings(deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8") | st.sampled_from("\n\r é😀")), st.integers(4, 40))
def test_sections_join_to_exactly_the_document_and_are_not_too_long(text: str, size: int):
    data = text.encode()
    ends = cuts(data, size)
    pieces = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    assert b"".join(pieces) == data
    assert all(0 < len(piece) <= size and piece.decode() for piece in pieces)


def test_sections_end_at_line_ends():
    data = b"one\ntwo\nthree\n"
    assert cuts(data, 9) == [8, 14]


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.99])
def test_text_files_come_back_exactly_and_their_tails_are_held_out(tmp_path, share):
    (tmp_path / "a.txt").write_bytes(TEXT.encode())
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfno line end " + b"x" * 500)
    (tmp_path / "empty.txt").write_bytes(b"")
    corpus = open_files("text", tmp_path / "*.txt", held_out=share)
    train, held_out = texts(corpus.train), texts(corpus.held_out)
    whole = [(path.read_bytes().decode()) for path in sorted(tmp_path.iterdir())]
    # What is held out of a file is its tail, so file by file the train sections come before the held-out ones.
    a_train = "".join(text for text in train if "Zeile" in text)
    a_held_out = "".join(text for text in held_out if "Zeile" in text)
    assert a_train + a_held_out == whole[0] == TEXT
    assert "".join(t for t in train + held_out if "Zeile" not in t) == whole[1]
    assert abs(len(held_out) / len(train + held_out) - share) < 0.06
    assert train
    assert held_out
    last = [s[i].last for s in (corpus.train, corpus.held_out) for i in range(len(s))]
    assert sum(last) == 2


def test_many_short_files_are_held_out_by_the_share(tmp_path):
    for number in range(40):
        (tmp_path / f"{number:02}.txt").write_text(f"file {number}\n")
    corpus = open_files("text", tmp_path / "*.txt", held_out=0.1)
    assert texts(corpus.held_out) == [f"file {number}\n" for number in (9, 19, 29, 39)]


def test_records_come_back_exactly_and_the_last_ones_are_held_out(tmp_path):
    records = [{"text": f"{number}: {TEXT[: 40 * number]}", "id": number} for number in range(20)]
    write_records(tmp_path / "a.jsonl", records[:12])
    (tmp_path / "b.jsonl").write_text("\n\n")  # empty lines don't count
    write_records(tmp_path / "c.jsonl", [*records[12:], {"text": ""}])
    corpus = open_files("jsonl", tmp_path / "*.jsonl", held_out=0.2)
    assert "".join(texts(corpus.train)) == "".join(record["text"] for record in records[:16])
    assert "".join(texts(corpus.held_out)) == "".join(record["text"] for record in records[16:])
    assert sum(corpus.train[i].last for i in range(len(corpus.train))) == 16


def test_a_single_record_is_cut_in_two(tmp_path):
    write_records(tmp_path / "a.jsonl", [{"content": TEXT}])
    corpus = open_files("jsonl", tmp_path / "*", field="content")
    assert "".join(texts(corpus.train) + texts(corpus.held_out)) == TEXT
    assert len(corpus.held_out) >= 1


def test_files_stay_on_the_disk(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text(TEXT)
    corpus = open_files("text", tmp_path / "a.txt")
    read = []
    monkeypatch.setattr(os, "pread", lambda *call: read.append(call[1:]) or b"x")
    assert corpus.train[3].text == "x"
    assert len(read) == 1
    assert read[0][0] <= 64


def test_a_long_scan_tells_its_progress(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "REPORT_BYTES", 1000)
    (tmp_path / "a.txt").write_bytes(TEXT.encode())
    reports = []
    open_corpus(schema.Data(source=f"text:{tmp_path}/*", section_bytes=64), lambda *report: reports.append(report))
    assert reports[0][2] == len(TEXT.encode())
    assert [done for _, done, _ in reports] == sorted({done for _, done, _ in reports})


def test_a_file_changed_in_use_is_named(tmp_path):
    for kind, content in (("text", TEXT), ("jsonl", '{"text": "a"}\n' * 5)):
        path = tmp_path / kind
        path.write_text(content)
        corpus = open_files(kind, path)
        path.write_text(content + content)
        with pytest.raises(DataError, match=f"the file {path} has changed"):
            corpus.train[0]
        path.unlink()
        with pytest.raises(DataError, match=f"the file {path} cannot be read any more"):
            corpus.train[0]


def test_a_file_changed_between_runs_is_named(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(TEXT)
    record = json.loads(json.dumps(open_files("text", tmp_path / "*").record()))
    check_unchanged(open_files("text", tmp_path / "*"), record)
    (tmp_path / "b").write_text(TEXT.replace("7", "8"))
    with pytest.raises(DataError, match=f"{tmp_path}/b has changed since the run began"):
        check_unchanged(open_files("text", tmp_path / "*"), record)
    (tmp_path / "b").rename(tmp_path / "c")
    with pytest.raises(DataError, match=f"{tmp_path}/b is gone"):
        check_unchanged(open_files("text", tmp_path / "*"), record)


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("text", b"", "holds no text"),
        ("text", b"short", "is a single section.*--data.section_bytes"),
        ("text", b"a" * 70 + b"\n\xff\xfe", "NAME is not UTF-8: byte 0xff at offset 71"),
        ("text", b"a" * 63 + "é".encode()[:1], "NAME is not UTF-8: byte 0xc3 at offset 63"),
        ("jsonl", b"", "holds no text"),
        ("jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', "NAME is not UTF-8: byte 0xe9 at offset 24"),
        ("jsonl", b'{"text": "a"}\n{"text"\n', r"NAME, line 2, offset \d+: not JSON"),
        (
            "jsonl",
            b'{"title": "a", "body": "b"}\n',
            r"NAME, line 1, offset \d+: --data.field=text is missing.*title, body",
        ),
        ("jsonl", b'{"text": 3}\n', r"NAME, line 1, offset \d+: --data.field=text is not text"),
        ("jsonl", b"[1]\n", r"NAME, line 1, offset \d+: a JSON object is needed, this is a list"),
        ("jsonl", b'{"text": "\\ud800"}\n', r"NAME, line 1, offset \d+: .*surrogate"),
        ("tsv", b"", "holds no text"),
        ("tsv", b"a\tb\n\nc d\n", r"NAME, line 3, offset \d+: .*SOURCE<TAB>TARGET, this has 1 column"),
        ("tsv", b"a\tb\n\nc\td\te\n", r"NAME, line 3, offset \d+: .*this has 3 column"),
        ("tsv", b"a\tb\n \tb\n", r"NAME, line 2, offset \d+: .*this has an empty source"),
        ("tsv", b"a\tb\nb\t\r\n", r"NAME, line 2, offset \d+: .*this has an empty target"),
        ("tsv", b"a\tb\nb\t\xff\n", "NAME is not UTF-8: byte 0xff at offset 6"),
        ("tsv", b"a\tb\na\tc\n", "all pairs that could be held out"),
    ],
)
def test_bad_files_are_one_clear_error(tmp_path, kind, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message.replace("NAME", re.escape(str(path)))):
        open_files(kind, path, languages="en-de" if kind == "tsv" else "")


BAD = {
    "text": (
        b"a" * 63 + b"\n" + b"\xff" * 63 + b"\n" + b"b" * 63 + b"\n" + b"\xfe",
        [r"NAME .* offset 64", r"offset 192"],
    ),
    "jsonl": (
        b'{"text": "a"}\n{"text"\n{"text": "b"}\n{"text": "\xff"}\n[]\n',
        ["NAME, line 2, offset 14: not JSON", "byte 0xff at offset 46", "NAME, line 5, offset 50: a JSON object"],
    ),
    "tsv": (b"a\tb\nc\nd\te\nf\t\n", ["NAME, line 2, offset 4: two texts", "NAME, line 4, offset 10: .*empty target"]),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_records_stop_the_run_or_are_left_out_each_with_file_and_offset(tmp_path, kind):
    path = tmp_path / "file"
    content, sentences = BAD[kind]
    path.write_bytes(content)
    sentences = [sentence.replace("NAME", re.escape(str(path))) for sentence in sentences]
    languages = "en-de" if kind == "tsv" else ""
    with pytest.raises(DataError, match=f"{sentences[0]}.*--data.bad_records=skip leaves out"):
        open_files(kind, path, languages=languages)
    corpus = open_files(kind, path, languages=languages, bad_records="skip")
    assert len(corpus.skipped) == len(sentences)
    for told, sentence in zip(corpus.skipped, sentences, strict=True):
        assert re.search(sentence, told)
    (first, last) = (sections[0] for sections in (corpus.train, corpus.held_out))
    assert (len(corpus.train), len(corpus.held_out)) == (1, 1)
    assert (first.text[0], last.text[0]) == {"tsv": ("b", "e")}.get(kind, ("a", "b"))
    assert last.last


def test_lines_with_tabs_are_pairs_and_evenly_spread_ones_are_held_out(tmp_path):
    path = tmp_path / "pairs.tsv"
    lines = [f'Line "{n}\t\u00a0Zeile "{n} größer 😀\r\n' for n in range(40)]
    lines[9] = 'Line "3\tsomething else\n'  # every tenth is held out, but this source is trained on
    path.write_text("\ufeff" + "\n".join(lines), encoding="utf-8", newline="")
    corpus = open_files("tsv", path, languages="en-de", held_out=0.1)
    held_out = [corpus.held_out[n] for n in range(len(corpus.held_out))]
    train = [corpus.train[n] for n in range(len(corpus.train))]
    assert [(pair.source, pair.text) for pair in held_out] == [
        (f'Line "{n}', f'Zeile "{n} größer 😀') for n in (19, 29, 39)
    ]
    assert [pair.source for pair in train] == [f'Line "{n}' for n in range(40) if n % 10 != 9]
    assert all(pair.last for pair in train + held_out)
    assert "36 pairs en-de" in corpus.description
    assert "3 held out (1 more" in corpus.description
    check_unchanged(open_files("tsv", path, languages="en-de", held_out=0.1), json.loads(json.dumps(corpus.record())))
    path.write_text("a\tb\nc\td\n")
    with pytest.raises(DataError, match=r"the file .*pairs.tsv has changed since the run began"):
        check_unchanged(open_files("tsv", path, languages="en-de"), corpus.record())
    with pytest.raises(DataError, match=r"pairs.tsv has changed while it was in use"):
        _ = corpus.train[0]


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_an_empty_glob_is_one_clear_error(tmp_path, kind):
    with pytest.raises(DataError, match=rf"no file matches {tmp_path}/\*.txt"):
        open_files(kind, tmp_path / "*.txt")
    with pytest.raises(DataError, match="it is a folder"):
        open_files(kind, tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("stlib", "is none of stdlib, tfds:.*did you mean stdlib"),
        ("txt:a", "did you mean text:"),
        ("stdlib:x", "is none of"),
        ("text", "is none of"),
        ("http://x", "is none of"),
    ],
)
def test_an_unknown_source_names_the_nearest(source, message):
    with pytest.raises(DataError, match=f"--data.source={source} {message}" if "none" in message else message):
        open_corpus(schema.Data(source=source))


def test_nothing_to_train_on_is_one_clear_error():
    with pytest.raises(DataError, match=r"--data.held_out=1.0 leaves nothing to train on"):
        open_corpus(schema.Data(held_out=1.0))
