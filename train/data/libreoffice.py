"""LibreOffice's help in two languages, paragraph by paragraph, as a TFDS dataset made without TensorFlow.

Debian's packages libreoffice-help-LANGUAGE hold the same HTML pages in each language, and the same paragraph has the
same id in each. The text is LibreOffice's, under the Mozilla Public License 2.0 (MPL-2.0); none of it is in this
repository.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from train.data.pairs import hold_out_unseen, text_number
from train.data.sections import DataError, Section
from train.data.stdlib import is_held_out

# Packages are named after a country as well where one language has several.
PACKAGE_LANGUAGES = {"en": "en-us", "zh": "zh-cn", "pt": "pt-br"}
PAGE = re.compile(r"/help/[^/]+/text/(.+\.html)$")
PARAGRAPHS = ("p", "h1", "h2", "h3", "h4", "h5", "h6")
HAN = re.compile("[\u4e00-\u9fff]")
PARSER_VERSION = "1.0.0"

# Text of a paragraph by (page, id).
Pages = dict[tuple[str, str], str]


def find_packages(languages: tuple[str, str], folder: Path) -> dict[str, Path]:
    """The package of each language in a folder: libreoffice-help-LANGUAGE_VERSION_all.deb.

    Raises:
      DataError: there is none or there are several.
    """
    found = {}
    for language in languages:
        name = _package(language)
        files = sorted(folder.glob(f"{name}_*.deb"))
        if len(files) != 1:
            problem = f"holds {len(files)} of them: {', '.join(f.name for f in files)}" if files else "has none"
            raise DataError(
                f"--data.source=libreoffice needs one {name}_VERSION_all.deb, and the folder {folder} {problem}; "
                f"`apt-get download {name}` gets it on Debian, packages.debian.org/{name} elsewhere"
            )
        found[language] = files[0]
    return found


def fetch_packages(languages: tuple[str, str], folder: Path) -> None:
    """Gets the packages that the folder lacks, by apt-get.

    Raises:
      DataError: there is no apt-get here, or it fails.
    """
    names = [_package(language) for language in languages]
    missing = [name for name in names if not list(folder.glob(f"{name}_*.deb"))]
    if not missing:
        return
    advice = (
        f"get {' and '.join(missing)} (.deb) from packages.debian.org and name their folder: "
        f"--data.source=libreoffice:FOLDER"
    )
    if not shutil.which("apt-get"):
        raise DataError(f"--data.source=libreoffice gets its text by apt-get, which is not here; {advice}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        command = ["apt-get", "download", "--quiet", *missing]
        result = subprocess.run(command, cwd=fresh, capture_output=True, text=True, check=False)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1]
            raise DataError(
                f"--data.source=libreoffice: `{' '.join(command)}` failed ({reason}); `apt-get update` may help, or "
                f"{advice}"
            )
        for file in Path(fresh).glob("*.deb"):
            file.replace(folder / file.name)


def fingerprint(packages: dict[str, Path]) -> str:
    """SHA-256 (hex) over the contents of the packages."""
    digest = hashlib.sha256(PARSER_VERSION.encode())
    for language in sorted(packages):
        digest.update(hashlib.sha256(packages[language].read_bytes()).digest())
    return digest.hexdigest()


def _package(language: str) -> str:
    return f"libreoffice-help-{PACKAGE_LANGUAGES.get(language, language.replace('_', '-'))}"


def read_package(path: Path, progress: Callable[[int], object] = lambda count: None) -> Pages:
    """All paragraphs of a package's help pages; calls progress(bytes of the package) now and then.

    Raises:
      DataError: it is no Debian package, is compressed in a way that cannot be read here, or has no help pages.
    """
    texts, told = {}, 0
    archive = io.BytesIO(_data_member(path))
    size, total = len(archive.getbuffer()), path.stat().st_size
    try:
        with tarfile.open(fileobj=archive, mode="r:*") as tar:
            for member in tar:
                page = PAGE.search(member.name)
                file = tar.extractfile(member) if page else None
                if page and file:
                    for name, text in paragraphs(file.read()).items():
                        texts[page[1], name] = text
                done = archive.tell() * total // size
                progress(done - told)
                told = done
    except (tarfile.TarError, lzma.LZMAError, OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if not texts:
        raise DataError(f"{path} holds no help pages in HTML, as packages of LibreOffice 6 and later do")
    return texts


def _data_member(path: Path) -> bytes:
    """The tar archive with a Debian package's files, compressed as `tarfile` can read it.

    The package is an `ar` archive (man deb): after 8 bytes, each member has a header of 60 bytes, with its name in the
    first 16 and its size in decimal digits from 48 to 58, and starts at an even place.
    """
    content = path.read_bytes()
    if not content.startswith(b"!<arch>\n"):
        raise DataError(f"{path} is no Debian package")
    place = 8
    while place + 60 <= len(content):
        header = content[place : place + 60]
        name, size = header[:16].decode("latin-1").rstrip(" /"), int(header[48:58])
        if name == "data.tar.zst":  # Ubuntu's, which Python reads from 3.14 on
            return _by_dpkg(path)
        if name.startswith("data.tar"):
            return content[place + 60 : place + 60 + size]
        place += 60 + size + size % 2
    raise DataError(f"{path} is a Debian package without data")


def _by_dpkg(path: Path) -> bytes:
    if not shutil.which("dpkg-deb"):
        raise DataError(f"{path} is compressed with zstd, which needs dpkg-deb to read; Debian's own packages do not")
    return subprocess.run(["dpkg-deb", "--fsys-tarfile", path], capture_output=True, check=True).stdout


def paragraphs(page: bytes) -> dict[str, str]:
    """The text of each paragraph and heading with an id, white space as single spaces; the first of equal ids.

    Where a page has several wordings, for Writer and for Calc or for macOS and for others, the default one is taken,
    or the first if there is none.

    Args:
      page: HTML in UTF-8.
    """
    from lxml import html

    texts: dict[str, str] = {}
    root = html.document_fromstring(page, parser=html.HTMLParser(encoding="utf-8", remove_comments=True))
    for element in root.iter(*PARAGRAPHS):
        name = element.get("id")
        if name and name not in texts:
            texts[name] = " ".join(_text(element).split())
    return texts


def _text(element: Any) -> str:
    switch = element.tag == "span" and (element.get("class") or "").startswith("switch")
    wordings = [child for child in element if "hidden" in child.attrib] if switch else []
    default = [child for child in wordings if not child.get("class")]
    unread = [child for child in wordings if child is not (default or wordings)[0]]
    parts = [" " if element.tag == "br" else element.text or ""]
    for child in element:
        parts += ["" if child in unread else _text(child), child.tail or ""]
    return "".join(parts)


def join(languages: tuple[str, str], first: Pages, second: Pages) -> tuple[list[tuple[str, Section]], Counter[str]]:
    """Pairs with their pages, in the order of the pages, the first one of equal pairs; and what became of all.

    Left out are pairs with an empty side, those that are the same in both languages but for punctuation and digits
    (function names, formulas, what nobody has translated yet: they would teach to copy), those whose Chinese has no
    Chinese character, and those in which one side is more than three times as long as the other and 20 bytes (wrong
    ones, mostly). Lengths are in bytes of UTF-8, in which Chinese is about as long as English.
    """
    pairs: dict[tuple[str, str], str] = {}
    fate: Counter[str] = Counter()
    for key in sorted((key for key in first if key in second), key=lambda key: key[0]):
        source, target = first[key], second[key]
        short, long = sorted((len(source.encode()), len(target.encode())))
        if not short:
            fate["empty"] += 1
        elif _letters(source) == _letters(target):
            fate["the same"] += 1
        elif "zh" in languages and not HAN.search((source, target)[languages.index("zh")]):
            fate["not Chinese"] += 1
        elif long > 3 * short + 20:
            fate["too unequal"] += 1
        elif (source, target) in pairs:
            fate["repeated"] += 1
        else:
            pairs[source, target] = key[0]
    return [(page, Section(target, last=True, source=source)) for (source, target), page in pairs.items()], fate


def _letters(text: str) -> str:
    return "".join(filter(str.isalpha, text)).casefold()


class LibreOfficeHelp(tfds.core.GeneratorBasedBuilder):
    """Paragraphs of LibreOffice's help in two languages (MPL-2.0); its config is named after them and the packages.

    Held out are the pairs of a fixed one in twenty pages, but for those whose source or target other pages have too.
    """

    VERSION = tfds.core.Version(PARSER_VERSION)

    def __init__(self, *, packages: dict[str, Path], progress: Callable[[int, int], object], **options: Any) -> None:
        """Calls progress(bytes read, bytes in all) while the dataset is being prepared.

        Args:
          packages: the .deb file of each of the two languages.
        """
        self.packages = {language: packages[language] for language in sorted(packages)}
        self._progress = progress
        name = f"{'-'.join(self.packages)}-{fingerprint(packages)[:12]}"
        versions = ", ".join(file.name for file in packages.values())
        config = tfds.core.BuilderConfig(name=name, description=f"The help of {versions}.")
        super().__init__(config=config, file_format="array_record", **options)

    def _info(self) -> tfds.core.DatasetInfo:
        names = (*self.packages, "page")
        return self.dataset_info_from_configs(
            description="Paragraphs of LibreOffice's help in two languages, joined on page and paragraph id.",
            features=tfds.features.FeaturesDict({name: tfds.features.Text() for name in names}),
            homepage="https://help.libreoffice.org",
            license="MPL-2.0",
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        total, done = sum(path.stat().st_size for path in self.packages.values()), 0

        def progress(count: int) -> None:
            nonlocal done
            done += count
            self._progress(done, total)

        one, other = self.packages
        first, second = (read_package(path, progress) for path in self.packages.values())
        pairs, fate = join((one, other), first, second)
        chosen_N = np.array([is_held_out(page) for page, _ in pairs], bool)
        texts = [(text_number(pair.source), text_number(pair.text)) for _, pair in pairs]
        held_out_N = hold_out_unseen(chosen_N, np.array(texts, np.int64).reshape(-1, 2), "libreoffice")
        fate["in training pages too"] = int(np.sum(chosen_N & ~held_out_N))
        if self.info.metadata is not None:
            self.info.metadata.update({"left out": dict(fate), "paragraphs": len(first.keys() & second.keys())})
        splits = {"train": ~chosen_N, "held_out": held_out_N}
        return {
            name: self._generate_examples([pairs[n] for n in np.flatnonzero(which_N)])
            for name, which_N in splits.items()
        }

    def _generate_examples(self, pairs: list[tuple[str, Section]]) -> Iterator[tuple[int, dict[str, str]]]:
        names = (*self.packages, "page")
        for key, (page, pair) in enumerate(pairs):
            yield key, dict(zip(names, (pair.source, pair.text, page), strict=True))
