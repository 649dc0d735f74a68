"""What a claim is, and what comes out when it is put to the test."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.checkpoint import Restored


@dataclass(frozen=True)
class Setup:
    """What the experiments are given."""

    out: pathlib.Path  # The folder of what they train and find.
    fast: bool  # Less of everything: minutes for all together, and the same direction.
    checkpoint: str  # A language model that was trained here.
    causal: str  # A larger one that was not.

    def trained(self, name: str, preset: str, changes: Mapping[str, Any] | None = None) -> Restored:
        """The network of a preset with changes, trained in `out/NAME`; one that is trained already is taken as it is.

        Raises:
          ConfigError: the folder has another run.
        """
        from configs.check import check
        from configs.convert import override
        from configs.presets import preset as preset_of
        from train.checkpoint import restore_params
        from train.loop import train

        config = override(preset_of(preset), {"name": name, "train.sample_every": 0, **(changes or {})})
        folder = self.out / name
        train(check(config), folder, "uv run -m launch.claims")
        return restore_params(folder)


@dataclass(frozen=True)
class Check:
    """One thing that has to come out: a number and the bound that it is held against."""

    what: str
    value: float
    bound: float
    is_most: bool  # Whether the bound is the most that the value may be, or the least.

    @property
    def holds(self) -> bool:
        """Whether it came out."""
        return self.value <= self.bound if self.is_most else self.value >= self.bound

    def told(self) -> str:
        """It in words."""
        return f"{self.what}: {self.value:.4g} (at {'most' if self.is_most else 'least'} {self.bound:.4g})"


def at_least(what: str, value: float, bound: float) -> Check:
    """A number that has to be as large as the bound."""
    return Check(what, float(value), bound, is_most=False)


def at_most(what: str, value: float, bound: float) -> Check:
    """A number that may not be larger than the bound."""
    return Check(what, float(value), bound, is_most=True)


@dataclass(frozen=True)
class Chart:
    """Lines, points or bars: rows with `x`, `y` and `series`, where several are compared."""

    title: str
    x: str
    y: str
    rows: list[dict[str, Any]]
    mark: str = "line"
    log_x: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came out."""

    checks: list[Check]
    figures: dict[str, Any]  # All numbers, for JSON.
    charts: list[Chart]
    notes: list[str] = dataclasses.field(default_factory=list)  # What they mean, and what they don't.


@dataclass(frozen=True)
class Claim:
    """A sentence and the experiment that shows whether it is so."""

    name: str
    sentence: str
    run: Callable[[Setup], Outcome]
