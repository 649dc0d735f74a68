"""Where a run folder lies, on a disk of this machine or in a bucket (gs://), and how its files are written there.

A bucket has no folders, no locks, no renaming and no files that grow: an object is there as a whole or not at all.
Checkpoints are written to it by Orbax and TensorStore, everything else by etils.epath, through gcsfs.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import logging
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from configs.schema import ConfigError
from train import processes

BUCKET = "gs://"
LOCK = ".lock"
UPLOADS = 30.0  # Seconds between two uploads of a file that lines are added to: each is of the whole file.

# Errors that pass where storage is far away, and the seconds between two tries.
PASSING = (errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT)
PAUSES = (0.5, 2.0, 8.0)

# Why nothing can be written or read, as the system says it (TensorStore: behind long paths), and what helps.
CAUSES = {
    os.strerror(number): what
    for number, what in {
        errno.ENOSPC: "Make room", errno.EDQUOT: "Make room", errno.EROFS: "Make it writable",
        errno.EACCES: "Give this user the right to write there",
    }.items()
}  # fmt: skip


class RunFolderError(RuntimeError):
    """A file of the run that cannot be written or read; the message names it and the way out."""


def place(spec: str | Path) -> Path:
    """The folder that a flag names: on this machine, or under gs:// one that is used like it.

    Raises ConfigError for storage that is not known, or where the packages for a bucket are missing.
    """
    if "://" not in (name := os.fspath(spec)):
        return Path(spec)
    if not name.startswith(BUCKET):
        raise ConfigError(f"{name}: a run folder is a folder of this machine, or gs://BUCKET/FOLDER.")
    if not all(name.removeprefix(BUCKET).partition("/")[::2]):
        raise ConfigError(f"{name}: a run needs a folder of the bucket, gs://BUCKET/FOLDER.")
    if not importlib.util.find_spec("gcsfs"):
        raise ConfigError(f"{name} needs a package that is not installed: pip install 'seq2see[gcs]'")
    # One way to reach buckets, whatever else is installed; and what TensorStore has written is seen at once.
    os.environ.setdefault("EPATH_USE_TF", "false")
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # It logs what it raises.
    import fsspec.config
    from etils import epath

    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return cast(Path, epath.Path(name))  # It has the methods of a Path.


def in_bucket(path: Path) -> bool:
    """Whether `path` lies in a bucket."""
    return os.fspath(path).startswith(BUCKET)


def absolute(path: Path) -> Path:
    """The path from the root of its file system, or in its bucket."""
    return path if in_bucket(path) else path.absolute()


@contextlib.contextmanager
def held(folder: Path) -> Iterator[Callable[[], None]]:
    """Holds the run folder for this process: two that train in one would overwrite each other's files.

    On a disk, a second one is refused; a killed process holds nothing. In a bucket, where nobody would know of a kill,
    the one that came last holds it. Gives a function that raises RunFolderError if that is another one.

    Raises RunFolderError if another one holds it, or nothing can be written there.
    """
    if in_bucket(folder):
        yield _hold_bucket(folder)
        return
    try:
        import fcntl
    except ImportError:  # Not a POSIX system: nothing is held.
        yield lambda: None
        return
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    with lock:
        try:
            if processes.writes():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunFolderError(
                f"Another process is training in {folder}: wait for it, stop it, or choose another folder with --run."
            ) from error
        yield lambda: None


def _hold_bucket(folder: Path) -> Callable[[], None]:
    path = folder / LOCK
    mine = {"host": socket.gethostname(), "process": os.getpid(), "id": uuid.uuid4().hex}
    if processes.writes():
        write_atomically(path, json.dumps(mine))

    def check() -> None:
        with reading(path):
            holder = json.loads(path.read_text()) if processes.writes() else mine
        if holder != mine:
            raise RunFolderError(
                f"Process {holder['process']} on {holder['host']} has begun to train in {folder}, so this one ends: "
                "each run needs a folder of its own, --run."
            )

    return check


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file as a whole: a reader, or a run after a kill, sees the old text or the new one.

    Raises RunFolderError where it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")

    def write() -> None:
        if in_bucket(path):  # Where nothing is seen of an object before it is whole.
            path.write_text(text, encoding="utf-8")
            return
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)

    with writing(path):
        retried(write)


class Lines:
    """A file that grows by lines, after what it holds already; a last line that was torn by a kill is ended.

    On a disk, a line is on its way when `write` returns. In a bucket the file is uploaded as a whole, by `sync` and
    otherwise at most every 30 seconds: a kill takes what came after. All methods raise RunFolderError.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._file, self._text, self._uploaded = path, None, "", time.monotonic()
        with writing(path):
            known = path.read_bytes() if path.is_file() else b""
            if in_bucket(path):
                self._text = known.decode()
                self._synced = self._text
            else:
                self._file = path.open("a", encoding="utf-8")
                self._file.write("\n" if known and not known.endswith(b"\n") else "")

    def write(self, line: dict[str, Any]) -> None:
        """Adds a JSON object."""
        text = json.dumps(line) + "\n"
        if self._file is None:
            self._text += text
            if time.monotonic() - self._uploaded > UPLOADS:
                self.sync()
            return
        with writing(self.path):
            self._file.write(text)
            self._file.flush()

    def sync(self) -> None:
        """Returns when all lines are where a start after a kill finds them."""
        if self._file is None and self._text != self._synced:
            write_atomically(self.path, self._text)
            self._synced, self._uploaded = self._text, time.monotonic()

    def close(self) -> None:
        """Writes what is left, and closes the file."""
        self.sync()
        if self._file:
            with writing(self.path):
                self._file.close()


def move(folder: Path, to: Path) -> None:
    """Moves a folder, where `to` is not there yet. In a bucket its files move one by one. Raises OSError."""
    if not in_bucket(folder):
        to.parent.mkdir(exist_ok=True)
        folder.rename(to)
        return
    import fsspec

    fsspec.filesystem("gcs").mv(os.fspath(folder), os.fspath(to), recursive=True)


def retried(write: Callable[[], None]) -> None:
    """Calls what writes a file as a whole, again where the storage did not answer, as one that is far away may.

    Raises the OSError of the last try, or at once one that waiting does not mend, such as a full disk.
    """
    for pause in PAUSES:
        try:
            return write()
        except OSError as error:
            if error.errno not in PASSING:
                raise
            print(f"Tried again in {pause:g} s: {error}", file=sys.stderr)
        time.sleep(pause)
    return write()


def cause(error: BaseException) -> tuple[str, str]:
    """What went wrong, and what helps: the beginning of a sentence that goes on with "or"; empty if nobody knows."""
    said = str(error).strip()
    for known, what in CAUSES.items():
        if known in said:
            return known, what
    lines = said.splitlines() or [type(error).__name__]
    return (getattr(error, "strerror", None) or lines[0][:300]).rstrip("."), ""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the storage raises into one clear RunFolderError about `path`."""
    with _clearly(path, "written", "the same command goes on from the newest checkpoint"):
        yield


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """The same for what is read."""
    with _clearly(path, "read", "nothing was changed"):
        yield


@contextlib.contextmanager
def _clearly(path: Path, done: str, then: str) -> Iterator[None]:
    try:
        yield
    except RunFolderError:
        raise
    except Exception as error:
        if not in_bucket(path) and not isinstance(error, OSError):
            raise  # Only what reaches a bucket has errors of many kinds.
        why, what = cause(error)
        if in_bucket(path) and isinstance(error, FileNotFoundError):  # Folders need not be there, so it is the bucket.
            why, what = "there is no such bucket", "Make it"
        way_out = f"{what} or choose" if what else "Choose"
        raise RunFolderError(
            f"The run folder cannot be {done}: {path}: {why}. {way_out} another place with --run; {then}."
        ) from error
