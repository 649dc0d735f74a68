"""A bar on stderr for work that takes long; where that is no terminal, nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

Done = Callable[[str, int, int], object]


@contextlib.contextmanager
def progress() -> Iterator[Done]:
    """A function to be called as (what is counted, how many are done, how many there are): a bar for each kind."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    tasks: dict[str, Any] = {}
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:

        def on_done(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield on_done
