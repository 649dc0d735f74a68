"""Configs as plain dictionaries (config.json), settings replaced by name, and the differences of two configs."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator
from typing import Any

from configs import versions
from configs.schema import SECTIONS, Config, ConfigError


def leaves(config: Config) -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """Every setting as (flag name such as `model.width`, its dataclass field, its value)."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in SECTIONS:
            for leaf in dataclasses.fields(value):
                yield f"{field.name}.{leaf.name}", leaf, getattr(value, leaf.name)
        else:
            yield field.name, field, value


def to_dict(config: Config) -> dict[str, Any]:
    """The config as nested dictionaries of plain values, ready for JSON."""
    return {"version": versions.CURRENT, **dataclasses.asdict(config)}


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of `to_dict`, also for what an older version wrote; absent settings keep their defaults.

    Raises:
      ConfigError: a name that the schema does not have, or a value of the wrong type or range.
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if name in SECTIONS and isinstance(value, dict):
            flat.update({f"{name}.{leaf}": leaf_value for leaf, leaf_value in value.items()})
        else:
            flat[name] = value
    version = flat.pop("version", 1)
    return override(Config(), versions.migrated(flat, version))


def override(config: Config, values: dict[str, Any]) -> Config:
    """A copy of `config` with settings replaced, by flag name: `{"model.width": 128}`."""
    known = {name: type(value) for name, _, value in leaves(Config())}
    top: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else f" Known are: {', '.join(sorted(known))}."
            raise ConfigError(f"There is no setting {name}.{hint}")
        section, _, leaf = name.rpartition(".")
        target = sections.setdefault(section, {}) if section else top
        target[leaf] = _typed(name, value, known[name])
    for section, changed in sections.items():
        top[section] = dataclasses.replace(getattr(config, section), **changed)
    return dataclasses.replace(config, **top)


def _typed(name: str, value: Any, kind: type) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise ConfigError(f"--{name}={value!r} is {type(value).__name__}; it must be {kind.__name__}.")
    return value


def differences(ours: Config, theirs: Config) -> list[str]:
    """What differs, one line a setting: `model.width: 256 here, 128 there`."""
    there = {name: value for name, _, value in leaves(theirs)}
    return [f"{name}: {value!r} here, {there[name]!r} there" for name, _, value in leaves(ours) if value != there[name]]
