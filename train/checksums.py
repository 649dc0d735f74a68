"""Whether the files of a checkpoint are those that were written: their sizes and CRC-32, in a file beside them."""

from __future__ import annotations

import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

FILE = "checksums.json"
CHUNK = 1 << 24  # Bytes read at a time: zlib lets other threads work while it is busy with so many.
THREADS = 8
UNSUMMED = ("_CHECKPOINT_METADATA", FILE)  # Orbax writes the time into the first one when all else is done.


def write(folder: epath.PathLike) -> None:
    """Sums up all files of a checkpoint that does not count as one yet. Raises OSError."""
    root = epath.Path(folder)
    (root / FILE).write_text(json.dumps({"files": _sums(root, _files(root))}, indent=1))


def damage(folder: epath.PathLike) -> str | None:
    """What is wrong with a checkpoint, in a few words; None if nothing is, or if it was written without sums."""
    root = epath.Path(folder)
    if not (root / FILE).exists():
        return None
    try:
        known: dict[str, Any] = json.loads((root / FILE).read_text())["files"]
        there = set(_files(root))
        if missing := sorted(set(known) - there):
            return f"{missing[0]} is missing"
        for name, (size, _) in known.items():
            if (found := (root / name).stat().length) != size:
                return f"{name} has {found} bytes, not {size}"
        for name, (_, crc) in _sums(root, known).items():
            if crc != known[name][1]:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{FILE} cannot be read: {error}"
    return None


def _files(root: epath.Path) -> list[str]:
    found, folders = [], [root]
    while folders:
        for path in folders.pop().iterdir():
            if path.is_dir():
                folders.append(path)
            elif not path.name.startswith(UNSUMMED):
                found.append(str(path.relative_to(root)))
    return sorted(found)


def _sums(root: epath.Path, names: Any) -> dict[str, tuple[int, int]]:
    """Size in bytes and CRC-32 of each file."""

    def of(name: str) -> tuple[int, int]:
        size = crc = 0
        with (root / name).open("rb") as file:
            while chunk := file.read(CHUNK):
                size, crc = size + len(chunk), zlib.crc32(chunk, crc)
        return size, crc

    with ThreadPoolExecutor(THREADS) as threads:
        return dict(zip(names, threads.map(of, names), strict=True))
