"""Samples in a terminal: text as it is written, and the table of what else could have come."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console as RichConsole
from rich.table import Table
from rich.text import Text

from train.writing import Chosen, harmless

BAR = 24  # Characters that probability 1 fills.


class Console:
    """Shows samples: the first as it is written, the others, which grow beside it, when all is done."""

    def __init__(self, file: TextIO, table: int, prompts: Sequence[str]) -> None:
        """Show on `file` the texts that continue `prompts`, each token with its `table` likeliest if that is not 0."""
        self._rich = RichConsole(file=file, highlight=False, soft_wrap=True)
        self._table = table
        self._prompts = prompts
        self._later: list[list[tuple[Chosen | None, str]]] = [[] for _ in prompts]
        self._heading(0)

    def on_token(self, row: int, token: Chosen | None, text: str) -> None:
        """One more token of one sample; `text` is what it adds for certain."""
        if row == 0:
            self._show(token, text)
        else:
            self._later[row].append((token, text))

    def close(self) -> None:
        """Show the samples that were not streamed."""
        for row in range(1, len(self._prompts)):
            self._rich.print()
            self._heading(row)
            for token, text in self._later[row]:
                self._show(token, text)
        if not self._table:
            self._rich.print()

    def _heading(self, row: int) -> None:
        if len(self._prompts) > 1:
            self._rich.print(Text(f"--- sample {row + 1} of {len(self._prompts)} ---", style="dim"))
        self._rich.print(Text(self._prompts[row], style="bold"), end="\n" if self._table else "")

    def _show(self, token: Chosen | None, text: str) -> None:
        if self._table:
            if token is not None:
                self._rich.print(next_token_table(token, self._table))
        else:
            self._rich.print(Text(harmless(text)), end="")
            self._rich.file.flush()


def next_token_table(token: Chosen, rows: int) -> Table:
    """The likeliest tokens at one place with their probabilities; the chosen one is marked, and added if need be."""
    table = Table(box=None, show_header=False, padding=(0, 1))
    listed = list(token.top[:rows])
    if token.id not in [other.id for other in listed]:
        listed.append(token)
    for other in listed:
        chosen = other.id == token.id
        probability = math.exp(other.logprob)
        bar = "█" * round(BAR * probability) or "▏"
        shown = other.text if other.text.isprintable() and other.text.strip() == other.text else repr(other.text)
        table.add_row(
            Text("→" if chosen else " ", style="bold green"),
            Text(shown, style="bold green" if chosen else ""),
            Text(f"{probability:.3f}", style="cyan"),
            Text(bar, style="green" if chosen else "blue"),
        )
    return table
