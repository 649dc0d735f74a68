"""Every leaf of the schema as a command-line flag: `--model.num_heads=8`, with the chosen config's value as default."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import Field, fields
from typing import Any

from absl import flags

from configs.check import check
from configs.convert import from_dict, leaves, override, to_dict
from configs.presets import PRESETS, preset
from configs.schema import Config, ConfigError, Mesh

FLAGS = flags.FLAGS
KINDS = {bool: "boolean", int: "integer", float: "float", str: "string"}  # Of flags, by the type of a setting.


def load(name: str) -> Config:
    """The config that `--config` names: a preset, or the one saved in a run folder.

    Raises:
      ConfigError: neither is there, or the file is not a config.
    """
    path = pathlib.Path(name) / "config.json"
    if name in PRESETS or not path.exists():
        return preset(name)
    try:
        return from_dict(json.loads(path.read_text("utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise ConfigError(f"{path} is not a saved config: {error}") from error


def define(
    argv: Sequence[str], default: str = "quickstart", adopt: Callable[[Config, str], Config] | None = None
) -> None:
    """Define --config, --print_config and a flag for each setting, whose defaults are those of the config asked for.

    Args:
      argv: the command line; --config is looked up in it first, so that `--help` shows that config's values.
      adopt: makes the config that of the network that --init_from names, if it is given.
    """
    config = load(_value_in(argv, "config", default))
    init_from = _value_in(argv, "init_from", config.init_from)
    if init_from and adopt:
        config = adopt(config, init_from)
    flags.DEFINE_string(
        "config", default, f"A preset ({', '.join(PRESETS)}) or a run folder to take the settings from."
    )
    flags.DEFINE_boolean("print_config", False, "Print the resolved config as JSON and exit.")
    _define_settings(leaves(config))


def _define_settings(settings: Iterable[tuple[str, Field[Any], Any]]) -> None:
    for name, field, value in settings:
        choices = field.metadata.get("choices")
        help_line = field.metadata["help"] + (f" One of: {', '.join(choices)}." if choices else "")
        define_one(name, value, help_line)


def define_one(name: str, value: Any, help_line: str) -> None:
    """Define a flag of the kind that its default is of."""
    getattr(flags, f"DEFINE_{KINDS[type(value)]}")(name, value, help_line)


def define_mesh() -> None:
    """Define the flags of the mesh alone, for programs that train nothing."""
    _define_settings(leaf for leaf in leaves(Config()) if leaf[0].startswith("mesh."))


def resolve_mesh() -> Mesh | None:
    """The mesh of the parsed flags, or None if none of them was given."""
    settings = {field.name: FLAGS[f"mesh.{field.name}"] for field in fields(Mesh)}
    if not any(flag.present for flag in settings.values()):
        return None
    return Mesh(**{name: int(flag.value or 0) for name, flag in settings.items()})


def _value_in(argv: Sequence[str], flag: str, default: str) -> str:
    """The value of a flag in an argument list that is not parsed yet."""
    found = default
    for index, argument in enumerate(argv):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument == "--":
            break
        if argument.startswith("-") and name == flag:
            found = value if equals else (argv[index + 1] if index + 1 < len(argv) else default)
    return found


def resolve() -> Config:
    """The config of the parsed flags, checked.

    Raises:
      ConfigError: a value that cannot be, or settings that contradict each other.
    """
    values = {name: FLAGS[name].value for name, _, _ in leaves(Config())}
    return check(override(Config(), values))


def to_json(config: Config) -> str:
    """The config as it is saved and printed."""
    return json.dumps(to_dict(config), indent=2)
