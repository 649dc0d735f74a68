"""What is varied: grids of settings, and named ablations, each a question with the settings that answer it."""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from configs.convert import leaves
from configs.schema import Config, ConfigError

Variant = dict[str, Any]  # Setting, by flag name, -> its value.
_RANGE = ".."


@dataclass(frozen=True)
class Range:
    """All values of a setting from `low` to `high`, both included, for a search to choose from."""

    setting: str
    low: float  # Whole, as is `high`, for a setting that is a whole number.
    high: float
    log: bool  # Whether ratios count rather than differences.


# The first variant of each is what the others are compared with.
ABLATIONS: dict[str, tuple[str, list[Variant]]] = {
    "heads": (
        "One head against many at equal width: do heads divide the work?",
        [{"model.attention": "mha", "model.num_heads": heads} for heads in (8, 4, 1)],
    ),
    "kv_heads": (
        "Fewer key and value heads, for a smaller cache",
        [{"model.attention": "mha"}, {"model.attention": "gqa"}, {"model.attention": "mqa"}],
    ),
    "position": (
        "How order is told",
        [{"model.position": name} for name in ("rope", "alibi", "learned", "sinusoidal", "none")],
    ),
    "norm": (
        "Where and how activations are normalized",
        [
            {"model.norm": "rms", "model.norm_position": "pre"},
            {"model.norm": "layer", "model.norm_position": "pre"},
            {"model.norm": "layer", "model.norm_position": "post"},
            {"model.norm": "rms", "model.norm_position": "both"},
        ],
    ),
    "activation": (
        "The feed-forward layer's non-linearity, with a gate and without",
        [
            {"model.activation": "silu", "model.gated": True},
            {"model.activation": "gelu", "model.gated": False},
            {"model.activation": "relu", "model.gated": False},
            {"model.activation": "relu2", "model.gated": False},
        ],
    ),
    "learning_rate": (
        "A learning rate too low, too high, and between",
        [{"optimizer.learning_rate": rate} for rate in (1e-3, 3e-4, 3e-3, 1e-2)],
    ),
    "attention": (
        "Attention against what came before it and what would be cheaper",
        [{"model.attention": "mha"}, {"model.attention": "linear"}, {"model.attention": "delta"}],
    ),
}


def ablation(name: str) -> list[Variant]:
    """The variants of a named ablation.

    Raises:
      ConfigError: there is none of this name.
    """
    if name not in ABLATIONS:
        near = difflib.get_close_matches(name, ABLATIONS, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(ABLATIONS)}."
        raise ConfigError(f"--ablation={name}: there is no such ablation. {hint}")
    return ABLATIONS[name][1]


def varied(text: str) -> list[Variant]:
    """`model.position=rope,alibi` as a list of variants, each with one setting.

    Raises:
      ConfigError: it is not of this form, or a value is not of the setting's type.
    """
    name, kind, rest = _setting_of(text)
    if _is_range(kind, rest):
        raise ConfigError(f"--vary={text} is a range, from which --search chooses: a grid needs a list of values.")
    return [{name: _value(name, value, kind)} for value in rest.split(",")]


def searched(text: str) -> list[Variant] | Range:
    """`optimizer.learning_rate=1e-4..1e-1:log` as a range to choose from; a list of values as `varied` reads it.

    Raises:
      ConfigError: it is not of this form, or no range of numbers.
    """
    name, kind, rest = _setting_of(text)
    if not _is_range(kind, rest):
        return varied(text)
    ends, colon, scale = rest.partition(":")
    if colon and scale != "log":
        raise ConfigError(f"--vary={text}: a range is NUMBER..NUMBER, or NUMBER..NUMBER:log for even ratios.")
    low, high = (_value(name, end, kind) for end in ends.split(_RANGE, 1))
    if not (math.isfinite(low) and math.isfinite(high) and low < high) or (scale and low <= 0):
        raise ConfigError(f"--vary={text}: a range goes from a number to a larger one, with :log from above 0.")
    return Range(name, low, high, bool(scale))


def _is_range(kind: type, text: str) -> bool:
    return kind in (int, float) and _RANGE in text


def _setting_of(text: str) -> tuple[str, type, str]:
    """What is varied, its type, and the text behind the equals sign."""
    name, equals, rest = text.partition("=")
    kinds = {leaf: type(value) for leaf, _, value in leaves(Config())}
    if not equals or not rest or name not in kinds:
        near = difflib.get_close_matches(name, kinds, n=1)
        hint = f" Did you mean {near[0]}?" if near and name not in kinds else ""
        raise ConfigError(f"--vary={text}: it must be SETTING=VALUE,VALUE,... with a setting of launch.train.{hint}")
    return name, kinds[name], rest


def _value(name: str, text: str, kind: type) -> Any:
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text)
    except (KeyError, ValueError):
        raise ConfigError(f"--vary={name}: {text!r} is not {kind.__name__}.") from None


def grid(*axes: Sequence[Variant]) -> list[Variant]:
    """Each variant of each axis with each of the others."""
    return [_merged(chosen) for chosen in itertools.product(*axes)]


def side_by_side(*axes: Sequence[Variant]) -> list[Variant]:
    """The first variants of all axes together, then the second ones, ...

    Raises:
      ConfigError: axes of different lengths.
    """
    if len({len(axis) for axis in axes}) > 1:
        counts = ", ".join(f"{next(iter(axis[0]))} has {len(axis)}" for axis in axes)
        raise ConfigError(f"--zip: all settings must have as many values: {counts}.")
    return [_merged(chosen) for chosen in zip(*axes, strict=True)]


def _merged(chosen: Sequence[Variant]) -> Variant:
    return {name: value for variant in chosen for name, value in variant.items()}


def label(variant: Variant) -> str:
    """A variant in words."""
    return " ".join(f"{name}={value}" for name, value in variant.items()) or "as it is"
