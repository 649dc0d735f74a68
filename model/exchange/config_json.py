"""From a config.json to a config of ours, and back."""

from __future__ import annotations

import collections
import math
from collections.abc import Collection
from typing import Any

from configs.check import check_network
from configs.convert import override
from configs.derived import max_length
from configs.schema import Config, ConfigError
from model.exchange.families import FAMILIES, SHARED, Family
from model.exchange.settings import Fields, Settings, canonical
from model.exchange.source import ExchangeError

WRAPPED = {"gemma3": "gemma3_text"}  # Kinds that see pictures too: their text network is another kind's.


def find_family(config: Fields) -> tuple[Family, dict[str, Any]]:
    """The family of a config.json, and the fields of its text network.

    Raises:
      ExchangeError: a kind of network that is not known, or numbers that are quantized.
    """
    kind = config.get("model_type")
    if kind in WRAPPED:
        config = {**config.get("text_config", {}), "model_type": WRAPPED[kind]}
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        raise ExchangeError(
            f"The config.json has model_type={kind!r}, which is not known here. Known are: "
            f"{', '.join(sorted((*FAMILIES, *WRAPPED)))}."
        )
    if config.get("quantization_config"):
        raise ExchangeError(
            "The config.json has a quantization_config; only weights in float32, float16 and bfloat16 are read "
            "(and quantized ones from GGUF files)."
        )
    return family, dict(config)


def to_config(config: Fields, tensors: Collection[str], name: str = "imported") -> Config:
    """The config of ours that computes what the network of a config.json computes.

    Args:
      config: the fields of a config.json.
      tensors: the names of all tensors, which tell for T5 whether its embeddings are tied.
      name: of the config.

    Raises:
      ExchangeError: a kind of network, or a value of a field, that is not known here; names it.
    """
    family, given = find_family(config)
    return _read(family, {**given, "tensors": tensors}, name)


def _read(family: Family, given: Fields, name: str) -> Config:
    fields = collections.ChainMap(dict(given), family.defaults, SHARED)
    settings: Settings = {}
    try:
        for codec in family.codecs:
            settings |= codec.read(fields)
    except KeyError as error:
        raise ExchangeError(f"The config.json of a {family.model_type} network has no field {error}.") from error
    except (AttributeError, TypeError) as error:
        raise ExchangeError(
            f"The config.json of a {family.model_type} network has a malformed field: {error}."
        ) from error
    vocab_size = settings.pop("vocab_size")
    try:
        config = override(Config(), {f"model.{setting}": value for setting, value in settings.items()})
        length = min(config.data.length, config.model.max_length or config.data.length)
        source = {"tokenizer.source": "checkpoint", "tokenizer.vocab_size": vocab_size}
        flags = {"name": name, "data.length": length, **source}
        return check_network(override(config, flags))
    except ConfigError as error:
        raise ExchangeError(f"The config.json describes a network that cannot be built here: {error}") from error


def to_fields(config: Config, model_type: str | None = None) -> tuple[Family, dict[str, Any]]:
    """The family that can hold the network of `config` (or the one that is asked for), and its config.json.

    Raises:
      ExchangeError: no family computes the same; names the settings in which the nearest differs.
    """
    if model_type is not None and model_type not in FAMILIES:
        raise ExchangeError(f"There is no family {model_type}; known are {', '.join(FAMILIES)}.")
    if config.model.lora_rank:
        raise ExchangeError(
            f"--model.lora_rank={config.model.lora_rank}: what is trained beside the weights has to be merged into "
            f"them before they are written."
        )
    tried: list[tuple[int, str]] = []
    for family in [FAMILIES[model_type]] if model_type else FAMILIES.values():
        fields = _fields(family, config)
        wrong = _differences(family, fields, config)
        if not wrong:
            return family, fields
        tried.append((len(wrong), f"{family.model_type}, which has {'; '.join(wrong)}"))
    raise ExchangeError(
        f"No kind of network that transformers knows computes what this one does. The nearest is {min(tried)[1]}."
    )


def _fields(family: Family, config: Config) -> dict[str, Any]:
    settings = canonical(config) | {"max_length": max_length(config), "router_balance": config.model.router_balance}
    fields: dict[str, Any] = {"architectures": [family.architecture], "model_type": family.model_type}
    for codec in family.codecs:
        try:
            fields |= codec.write(settings)
        except KeyError:  # A setting that this network does not have: `_differences` will name it.
            continue
    fields["torch_dtype"] = config.model.param_dtype
    fields["is_encoder_decoder"] = config.model.network == "encoder_decoder"
    return fields


def _differences(family: Family, fields: dict[str, Any], config: Config) -> list[str]:
    """The settings in which the network of `fields` is another than that of `config`."""
    tensors = () if config.model.tied_embeddings else ("lm_head.weight",)
    try:
        theirs = canonical(_read(family, {**fields, "tensors": tensors}, config.name))
    except (ExchangeError, TypeError) as error:
        return [str(error)]
    ours = canonical(config)
    return [
        f"{name}={theirs.get(name)!r} where this one has {ours.get(name)!r}"
        for name in sorted(ours.keys() | theirs.keys())
        if not _same(ours.get(name), theirs.get(name))
    ]


def _same(one: Any, other: Any) -> bool:
    """Equal, or numbers that differ by rounding alone."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9)
    return one == other
