"""LibreOffice's help in two languages: from Debian packages to pairs."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from configs import schema
from train.data import libreoffice
from train.data.libreoffice import join, paragraphs, read_package
from train.data.sources import DataError, check_unchanged, open_corpus
from train.data.stdlib import is_held_out

PLACES = {"en": "en-US", "de": "de", "zh": "zh-CN"}
PAGE = """<!DOCTYPE html><html><head><title>Not this</title>
<script>if (a<b) document.write("<p id='no'>")</script></head>
<body><p dir="auto">Nor this</p><div id="DisplayArea">{}<br><p class="embedded">nor that</p></div></body></html>"""


def write_package(path: Path, language: str, pages: dict[str, dict[str, str]], compression: str = "xz") -> None:
    """A Debian package with help pages, each a dictionary of paragraphs by id; written by hand, as `man deb` has it."""
    files = {
        "usr/share/doc/copyright": "MPL-2.0",
        f"usr/share/libreoffice/help/{PLACES[language]}/index.html": "<p id='x'>y",
    }
    for name, texts in pages.items():
        body = "\n".join(f'<p id="{key}" class="paragraph" dir="auto">{text}</p>' for key, text in texts.items())
        files[f"usr/share/libreoffice/help/{PLACES[language]}/text/{name}"] = PAGE.format(body)
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=f"w:{compression}") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", f"data.tar.{compression}": data.getvalue()}
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, content in members.items():
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content)
            file.write(b"\n" * (len(content) % 2))


WORDS = {"en": "word", "de": "Wort", "zh": "词"}


def pages_of(language: str) -> dict[str, dict[str, str]]:
    """Sixty pages: a sentence of its own in each, one that all have, and a function name."""
    word = WORDS[language]
    pages = {}
    for n in range(60):
        letters = "".join(chr(ord("a") + int(digit)) for digit in str(n))
        texts = {"hd_id1": f"{word} {letters}", "par_id2": f"{word} {word}", "par_id3": f"SUM({n})", "par_id4": ""}
        pages[f"shared/{n}.html"] = texts
    return pages


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    for language, name in (("en", "en-us"), ("de", "de"), ("zh", "zh-cn")):
        write_package(folder / f"libreoffice-help-{name}_4%3a7.4.7_all.deb", language, pages_of(language))
    return folder


def config_of(folder: Path, languages: str, place: Path) -> schema.Data:
    return schema.Data(source=f"libreoffice:{folder}", languages=languages, directory=str(place))


def pairs_of(sections) -> list[tuple[str, str]]:
    return [(pair.source, pair.text) for pair in (sections[n] for n in range(len(sections)))]


@pytest.mark.parametrize("languages", ["en-de", "de-en", "en-zh", "zh-de"])
def test_paragraphs_are_joined_and_pages_are_held_out(folder, tmp_path_factory, languages):
    place = tmp_path_factory.getbasetemp() / "prepared"
    corpus = open_corpus(config_of(folder, languages, place))
    source, target = (pages_of(language) for language in languages.split("-"))
    own = {page: (source[page]["hd_id1"], target[page]["hd_id1"]) for page in source}
    common = (source["shared/0.html"]["par_id2"], target["shared/0.html"]["par_id2"])
    assert sorted(pairs_of(corpus.train)) == sorted([common] + [own[page] for page in own if not is_held_out(page)])
    assert sorted(pairs_of(corpus.held_out)) == sorted(own[page] for page in own if is_held_out(page))
    assert pairs_of(corpus.held_out)
    # 240 paragraphs: 60 are empty, 60 function names, and of the one that all have, 59 repeat the first.
    assert "of 240 paragraphs; left out: " in corpus.description
    assert "60 empty" in corpus.description
    assert "60 the same" in corpus.description
    assert "59 repeated" in corpus.description


def test_it_is_prepared_once_for_both_directions_and_another_package_is_noticed(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    first = open_corpus(config_of(copy, "en-de", tmp_path))
    never = lambda *report: pytest.fail("was prepared a second time")  # noqa: E731
    second = open_corpus(config_of(copy, "de-en", tmp_path), never)
    assert pairs_of(second.train) == [(target, source) for source, target in pairs_of(first.train)]
    check_unchanged(open_corpus(config_of(copy, "en-de", tmp_path), never), json.loads(json.dumps(first.record())))
    pages = pages_of("de")
    pages["shared/1.html"]["hd_id1"] = "Neues"
    write_package(copy / "libreoffice-help-de_4%3a7.4.7_all.deb", "de", pages)
    with pytest.raises(DataError, match="has changed since the run began"):
        check_unchanged(open_corpus(config_of(copy, "en-de", tmp_path)), first.record())


def test_a_page_becomes_paragraphs_with_one_wording_of_each():
    html = PAGE.format(
        """<h1 id="hd_id1"><a name="x"></a>Größe &amp; <span class="emph">size</span>\u00a0 of
        it</h1><p id="a">Press <span id="s1" class="switchinline"><span hidden="true" id="M" class="MAC"><span
        class="keycode">Command</span></span><span hidden="true" id="d"><span class="keycode">Ctrl</span></span></span>
        +S.</p>
        <p id="b">In <span class="switchinline"><span hidden="true" class="WRITER">text</span><span hidden="true"
        class="CALC">cells</span></span>.</p><p id="a">again</p><p id="c">one<br>two<p id="d">unclosed <span>end</p>"""
    )
    assert paragraphs(html.encode()) == {
        "hd_id1": "Größe & size of it",
        "a": "Press Ctrl +S.",
        "b": "In text.",
        "c": "one two",
        "d": "unclosed end",
    }


def test_pairs_that_would_teach_nothing_are_left_out():
    english = {"empty": "", "name": "COS(1)", "same": "Not yet translated.", "good": "Next", "again": "Next"}
    english |= {"long": "Click Next.", "short": "or", "latin": "Width"}
    chinese = {"empty": "x", "name": "「cos」 2", "same": "Not yet translated.", "good": "下一步", "again": "下一步"}
    chinese |= {"long": "如果您使用的不是标准驱动程序，请选择适当的驱动程序，" * 2, "short": "或者", "latin": "Breite"}
    pages = ({("page", name): text for name, text in texts.items()} for texts in (english, chinese | {"more": "多"}))
    pairs, fate = join(("en", "zh"), *pages)
    assert [(page, pair.source, pair.text) for page, pair in pairs] == [
        ("page", "Next", "下一步"),
        ("page", "or", "或者"),
    ]
    assert fate == {"empty": 1, "the same": 2, "repeated": 1, "too unequal": 1, "not Chinese": 1}


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="packages compressed by zstd are read by dpkg-deb")
@pytest.mark.parametrize("compression", ["xz", "gzip", "zstd"])
def test_packages_made_by_debians_own_tool_are_read(tmp_path, compression):
    root = tmp_path / "root"
    page = root / "usr/share/libreoffice/help/de/text/shared/a.html"
    page.parent.mkdir(parents=True)
    page.write_text(PAGE.format('<p id="par_1">Größe</p>'))
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN/control").write_text(
        "Package: a\nVersion: 1\nArchitecture: all\nMaintainer: n <n@n>\nDescription: d\n"
    )
    command = ["dpkg-deb", f"-Z{compression}", "--build", "--root-owner-group", root, tmp_path / "a.deb"]
    subprocess.run(command, check=True, capture_output=True)
    assert read_package(tmp_path / "a.deb") == {("shared/a.html", "par_1"): "Größe"}


def test_what_is_no_package_is_one_clear_error(tmp_path, folder):
    place = tmp_path / "a.deb"
    for content, message in (
        (b"PK\x03\x04", "is no Debian package"),
        (b"!<arch>\n", "is a Debian package without data"),
    ):
        place.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_package(place)
    write_package(place, "de", {})
    with pytest.raises(DataError, match="holds no help pages in HTML"):
        read_package(place)
    broken = bytearray(sorted(folder.glob("*.deb"))[0].read_bytes())
    broken[-100:] = bytes(100)
    place.write_bytes(broken)
    with pytest.raises(DataError, match=r"a.deb cannot be read"):
        read_package(place)


def test_missing_packages_are_one_clear_error(tmp_path, folder, monkeypatch):
    with pytest.raises(
        DataError, match=r"one libreoffice-help-fr_VERSION_all.deb, and the folder .* has none; .*apt-get"
    ):
        open_corpus(config_of(folder, "en-fr", tmp_path))
    shutil.copytree(folder, tmp_path / "two")
    shutil.copy(folder / "libreoffice-help-de_4%3a7.4.7_all.deb", tmp_path / "two/libreoffice-help-de_8_all.deb")
    with pytest.raises(DataError, match=r"holds 2 of them: libreoffice-help-de_4.*, libreoffice-help-de_8"):
        open_corpus(config_of(tmp_path / "two", "en-de", tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"gets its text by apt-get, which is not here; get .*libreoffice:FOLDER"):
        open_corpus(schema.Data(source="libreoffice", languages="en-de", directory=str(tmp_path)))


@pytest.mark.skipif(not shutil.which("apt-get"), reason="needs apt-get")
def test_a_package_that_apt_does_not_have_is_one_clear_error(tmp_path):
    with pytest.raises(DataError, match=r"download --quiet libreoffice-help-xx libreoffice-help-yy` failed \(.*packag"):
        libreoffice.fetch_packages(("xx", "yy"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="session")
def fetched(tmp_path_factory) -> Path:
    """TFDS's folder, with the real packages in it, where apt-get can fetch them."""
    if not shutil.which("apt-get"):
        pytest.skip("needs apt-get")
    place = tmp_path_factory.mktemp("fetched")
    try:
        libreoffice.fetch_packages(("en", "de"), place / "downloads" / "libreoffice")
    except DataError as error:
        pytest.skip(str(error))
    return place


@pytest.mark.slow
def test_the_real_help_has_tens_of_thousands_of_pairs(fetched):
    corpus = open_corpus(schema.Data(source="libreoffice", languages="en-de", directory=str(fetched)))
    assert len(corpus.train) > 30_000
    assert 1_000 < len(corpus.held_out) < len(corpus.train) / 15
    train, held_out = pairs_of(corpus.train), pairs_of(corpus.held_out)
    assert not {source for source, _ in train} & {source for source, _ in held_out}
    assert not {target for _, target in train} & {target for _, target in held_out}
    assert all(source and target and source != target for source, target in train + held_out)
    assert ("Click OK.", "Klicken Sie auf OK.") in {*train, *held_out}
