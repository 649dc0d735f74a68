"""How every program starts: flags with a help that teaches, one clear line for what is wrong, an exit status.

Exit status: 0 done, 1 failed, 2 bad flags, 75 saved and asking to be started again.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import flags

from configs.convert import leaves
from configs.schema import Config, ConfigError
from launch import processes
from launch.control import ProcessError
from train.stop import hold

MALLOC = {"hugetlb": 1, "mmap_max": 0, "trim_threshold": 1 << 36, "top_pad": 1 << 28}
CHECKPOINT = (
    "A run folder (its newest checkpoint), one of its steps as DIR@STEP, a Hugging Face folder, hf:ORG/NAME, "
    "gguf:FILE, or smollm2."
)
SETTINGS = tuple(name for name, _, _ in leaves(Config()))


def program(
    name: str, doc: str, run: Callable[[], int | None], define: Callable[[Sequence[str]], None], argv: Sequence[str]
) -> NoReturn:
    """Define the flags, parse them, answer --help, run, and exit with the status.

    Args:
      name: how the program is called, `launch.train`.
      doc: what --help says first.
      run: the program; may return an exit status, and raises one of our errors with one clear sentence.
      define: defines the program's flags, given the command line.
    """
    before, status, why = set(flags.FLAGS), 0, ""
    try:
        define(argv)
        if asks_for_help(argv):
            print(_help(name, doc, [flag for flag in flags.FLAGS if flag not in before]), flush=True)
            sys.exit(0)
        rest = flags.FLAGS(list(argv))[1:]
        if rest:
            raise ConfigError(f"{rest[0]!r} is not a flag: settings are written --name=value (see --help).")
        status = run() or 0
    except (flags.Error, ConfigError) as error:
        status, why = 2, str(error)
    except KeyboardInterrupt:
        status = 130  # As a shell reports it; a training run saves instead and ends with 75.
    except BrokenPipeError:  # Whoever read our output has seen enough (`| head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        processes.await_verdict(error)
        status, why = 1, str(error)
        if not isinstance(error, (*_expected_errors(), OSError)):
            traceback.print_exc()
            why = f"{type(error).__name__}: {error}"
    if why:
        print(f"{name}: {why}", file=sys.stderr)
    processes.leave(status, why or "it was interrupted")
    sys.exit(status)


def asks_for_help(argv: Sequence[str]) -> bool:
    """Whether --help is on the command line."""
    return any(argument in ("--help", "-help", "-h", "--helpfull") for argument in argv)


def _expected_errors() -> tuple[type[Exception], ...]:
    """What a run raises with a message for people; imported late, since it brings JAX with it."""
    from train.checkpoint import CheckpointError
    from train.data.sections import DataError
    from train.loop import TrainingError
    from train.storage import RunFolderError

    return CheckpointError, DataError, ProcessError, RunFolderError, TrainingError


def _help(name: str, doc: str, own: Sequence[str]) -> str:
    """The doc, then each flag with its default and a sentence: the program's own first, then settings by section."""
    width = min(shutil.get_terminal_size().columns, 110)
    lines, section = [doc.strip(), "", f"Usage: uv run -m {name} [--flag=value ...]", "", "Flags:"], ""
    for flag in [*(flag for flag in own if flag not in SETTINGS), *(flag for flag in SETTINGS if flag in own)]:
        if flag.rpartition(".")[0] != section:
            section = flag.rpartition(".")[0]
            lines += ["", f"{section}:"]
        default = flags.FLAGS[flag].default
        shown = str(default).lower() if isinstance(default, bool) else "" if default in (None, []) else str(default)
        lines.append(f"  --{flag}={shown}")
        lines += textwrap.wrap(flags.FLAGS[flag].help or "", width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _keep_memory() -> None:
    """On Linux, start this process again with a malloc that keeps its memory and asks for huge pages.

    XLA on a CPU takes and returns hundreds of megabytes in every step, and the kernel clears them page by page: with
    this training is about 1.3 times as fast (docs/benchmarks.md). glibc reads the variable only when a process starts.
    A user's own GLIBC_TUNABLES is left as it is.
    """
    if not sys.platform.startswith("linux") or "GLIBC_TUNABLES" in os.environ:
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(f"glibc.malloc.{name}={value}" for name, value in MALLOC.items())
    hold()
    os.execv(sys.executable, sys.orig_argv)


def prepare_jax() -> None:
    """Keep memory within a run and compiled programs between runs, and say nothing that the user cannot act on.

    To be called before JAX is imported: the process may start again, and what it has imported would be lost.

    `JAX_COMPILATION_CACHE_DIR` puts the cache elsewhere than under ~/.cache.
    """
    _keep_memory()
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "seq2see" / "jax"))
    # By default JAX keeps only what took a second to compile, which leaves out most of a small program.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
