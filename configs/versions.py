"""Configs that other versions of this program wrote: with settings under the names that they have now.

Each change of a setting's name or meaning gets the next number and a line in CHANGES; what is only new needs none,
since absent settings have their defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from configs.schema import ConfigError

Flat = dict[str, Any]  # By flag name: {"model.width": 128}.

# The number of a version -> what becomes of a config of the version before.
CHANGES: dict[int, Callable[[Flat], Flat]] = {}
CURRENT = max(CHANGES, default=1)


def renamed(names: dict[str, str]) -> Callable[[Flat], Flat]:
    """A change of nothing but names, old -> new."""
    return lambda flat: {names.get(name, name): value for name, value in flat.items()}


def migrated(flat: Flat, version: Any, changes: dict[int, Callable[[Flat], Flat]] | None = None) -> Flat:
    """The settings of a config of `version`, as they are called now.

    Raises:
      ConfigError: a version that is not known, since a newer program wrote it.
    """
    changes = CHANGES if changes is None else changes
    newest = max(changes, default=1)
    if type(version) is not int or not 1 <= version <= newest:
        raise ConfigError(
            f"The config is of version {version!r}, and this program knows those up to {newest}: a newer seq2see wrote "
            "it. Use that, or a newer one."
        )
    for number in sorted(changes):
        if number > version:
            flat = changes[number](flat)
    return flat
