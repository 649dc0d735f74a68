"""How every program starts: flags with a help that teaches, one clear line for what is wrong, an exit status.

Exit status: 0 done, 1 failed, 2 bad flags.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import flags

from configs.convert import leaves
from configs.schema import Config, ConfigError

SETTINGS = tuple(name for name, _, _ in leaves(Config()))


def program(
    name: str, doc: str, run: Callable[[], None], define: Callable[[Sequence[str]], None], argv: Sequence[str]
) -> NoReturn:
    """Define the flags, parse them, answer --help, run, and exit with the status.

    Args:
      name: how the program is called, `launch.train`.
      doc: what --help says first.
      run: the program; raises one of our errors with one clear sentence.
      define: defines the program's flags, given the command line.
    """
    from train.checkpoint import CheckpointError
    from train.data.sources import DataError
    from train.loop import TrainingError
    from train.run import RunFolderError

    before = set(flags.FLAGS)
    try:
        define(argv)
        if any(argument in ("--help", "-help", "-h", "--helpfull") for argument in argv):
            print(_help(name, doc, [flag for flag in flags.FLAGS if flag not in before]))
            sys.exit(0)
        rest = flags.FLAGS(list(argv))[1:]
        if rest:
            raise ConfigError(f"{rest[0]!r} is not a flag: settings are written --name=value (see --help).")
        run()
    except (flags.Error, ConfigError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
    except (CheckpointError, DataError, RunFolderError, TrainingError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


def _help(name: str, doc: str, own: Sequence[str]) -> str:
    """The doc, then each flag with its default and a sentence: the program's own first, then settings by section."""
    width = min(shutil.get_terminal_size().columns, 110)
    lines, section = [doc.strip(), "", f"Usage: uv run -m {name} [--flag=value ...]", "", "Flags:"], ""
    for flag in [*(flag for flag in own if flag not in SETTINGS), *(flag for flag in SETTINGS if flag in own)]:
        if flag.rpartition(".")[0] != section:
            section = flag.rpartition(".")[0]
            lines += ["", f"{section}:"]
        default = flags.FLAGS[flag].default
        shown = str(default).lower() if isinstance(default, bool) else "" if default is None else str(default)
        lines.append(f"  --{flag}={shown}")
        lines += textwrap.wrap(flags.FLAGS[flag].help or "", width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def prepare_jax() -> None:
    """Keep compiled programs between runs, and say nothing that the user cannot act on. Before JAX is first used.

    `JAX_COMPILATION_CACHE_DIR` puts the cache elsewhere than under ~/.cache.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    if not jax.config.jax_compilation_cache_dir:
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(cache / "seq2see" / "jax"))
    # By default JAX keeps only what took a second to compile, which leaves out most of a small program.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
