"""Single fields of a config.json and the settings of ours that they mean, in both directions.

A `Codec` translates some fields; a family (families.py) is a list of them. Reading gives settings of
`configs.schema.Model` by name (and `vocab_size`), writing gives fields of config.json. Both old and new names of
`transformers` are read: it moved `rope_theta` and `rope_scaling` into `rope_parameters` in its fifth version. The old
ones are written, which both understand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from configs.derived import (
    attention_scale,
    encoder_layers,
    feed_forward_width,
    has_final_norm,
    head_width,
    layer_windows,
    logit_scale,
    max_length,
    num_kv_heads,
)
from configs.schema import Config
from model.exchange.source import ExchangeError
from model.positions import rope_attention_factor

Fields = Mapping[str, Any]  # of a config.json
Settings = dict[str, Any]  # of `configs.schema.Model`, and `vocab_size`

# What a training run is set to, or how a device computes, is no part of what a network computes.
NOT_THE_NETWORK = (
    "dropout", "lora_rank", "lora_alpha", "lora_targets", "dtype", "param_dtype", "matmul", "layers", "remat",
    "kernel", "router_balance", "router_z_loss", "base_width",
)  # fmt: skip
ACTIVATIONS = {
    "gelu_pytorch_tanh": "gelu", "gelu_new": "gelu", "gelu_fast": "gelu", "gelu": "gelu_exact", "silu": "silu",
    "swish": "silu", "relu": "relu", "relu2": "relu2",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Codec:
    """Some fields of a config.json, and what they mean."""

    read: Callable[[Fields], Settings]
    write: Callable[[Settings], dict[str, Any]]


def canonical(config: Config) -> Settings:
    """What the network of `config` computes: its settings with defaults filled in, without those that change nothing.

    Two configs with the same canonical settings are the same function of the same parameters.
    """
    model = config.model
    settings = dataclasses.asdict(model)
    for name in (*NOT_THE_NETWORK, "window", "window_pattern", "alignment"):
        del settings[name]
    settings["vocab_size"] = config.tokenizer.vocab_size
    settings["head_width"], settings["feed_forward_width"] = head_width(config), feed_forward_width(config)
    settings["attention_scale"], settings["logit_scale"] = attention_scale(config), logit_scale(config)
    settings["final_norm"] = "on" if has_final_norm(config) else "off"
    settings["qkv_biases"] = model.qkv_biases or model.biases
    settings["windows"] = tuple(layer_windows(config, model.num_layers))
    if model.network == "encoder_decoder":
        settings["encoder_windows"] = tuple(layer_windows(config, encoder_layers(config)))
    settings["num_kv_heads"] = num_kv_heads(config)
    if model.attention in ("mha", "gqa", "mqa"):
        settings["attention"] = "gqa"
        _drop(settings, "latent_width", "query_latent_width", "latent_rope_width", "convolution")
    settings["encoder_layers"] = encoder_layers(config) if model.network == "encoder_decoder" else 0
    if model.num_experts == 0:
        _drop(settings, "experts_per_token", "expert_capacity", "router_renormalize")
    if model.position != "relative":
        _drop(settings, "relative_buckets", "relative_distance")
    if model.position == "learned":
        settings["max_length"] = max_length(config)
    else:
        _drop(settings, "max_length")
    _canonical_rope(config, settings)
    return settings


def _canonical_rope(config: Config, settings: Settings) -> None:
    """Fill in RoPE's settings, or drop those that its scaling, or another way to tell positions, does not read."""
    model = config.model
    read = {
        "none": (),
        "linear": ("factor",),
        "ntk": ("factor",),
        "llama3": ("factor", "original_length", "slow", "fast"),
        "yarn": ("factor", "original_length", "slow", "fast", "attention_factor"),
        "longrope": ("original_length", "attention_factor", "factors", "long_factors"),
    }[model.rope_scaling]
    names = {"factor": "rope_scaling_factor"}
    keep = {names.get(name, f"rope_{name}") for name in (*read, "base", "fraction", "scaling", "local_base")}
    for name in [name for name in settings if name.startswith("rope_")]:
        if model.position != "rope" or name not in keep:
            del settings[name]
    if model.position != "rope":
        return
    if "attention_factor" in read:
        settings["rope_attention_factor"] = rope_attention_factor(config)
    if model.rope_local_base == 0 and model.rope_scaling == "none" and any(settings["windows"]):
        settings["rope_local_base"] = model.rope_base
    if not any(settings["windows"]):
        _drop(settings, "rope_local_base")
    if model.rope_scaling == "longrope":
        settings["rope_long_factors"] = settings["rope_long_factors"] or settings["rope_factors"]
        for name in ("rope_factors", "rope_long_factors"):
            settings[name] = tuple(float(part) for part in settings[name].split(","))


def _drop(settings: Settings, *names: str) -> None:
    for name in names:
        settings.pop(name, None)


def rename(**names: str) -> Codec:
    """Fields whose value is that of a setting under another name."""
    return Codec(
        lambda fields: {ours: fields[theirs] for theirs, ours in names.items()},
        lambda settings: {theirs: settings[ours] for theirs, ours in names.items() if ours in settings},
    )


def always(**settings: Any) -> Codec:
    """Settings that all networks of a family have."""
    return Codec(lambda fields: settings, lambda _: {})


def only(**values: Any) -> Codec:
    """Fields for which we know one value alone (or None, which `transformers` takes for it)."""

    def read(fields: Fields) -> Settings:
        for name, value in values.items():
            if fields[name] not in (value, None):
                raise ExchangeError(
                    f"The config.json has {name}={fields[name]!r}; a network of the kind {fields['model_type']} is "
                    f"only known here with {name}={value!r}."
                )
        return {}

    return Codec(read, lambda _: dict(values))


def activation(field: str, written: Mapping[str, str]) -> Codec:
    """The feed-forward layer's non-linearity; `written` is what ours are called in this family where that differs."""

    def read(fields: Fields) -> Settings:
        if fields[field] not in ACTIVATIONS:
            raise ExchangeError(
                f"The config.json has {field}={fields[field]!r}, which is not one of {', '.join(ACTIVATIONS)}."
            )
        return {"activation": ACTIVATIONS[fields[field]]}

    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())} | dict(written)
    return Codec(read, lambda settings: {field: names[settings["activation"]]})


def kv_heads() -> Codec:
    """`num_key_value_heads` and `head_dim`, which may be missing: as many as there are queries, and the rest."""

    def read(fields: Fields) -> Settings:
        heads = fields["num_attention_heads"]
        head = fields.get("head_dim") or fields["hidden_size"] // heads
        return {"attention": "gqa", "num_kv_heads": fields.get("num_key_value_heads") or heads, "head_width": head}

    return Codec(
        read,
        lambda settings: {"num_key_value_heads": settings["num_kv_heads"], "head_dim": settings["head_width"]},
    )


def one_window(switch: str = "") -> Codec:
    """`sliding_window`, the same in all layers; where the family has a field `switch`, it has to be on."""

    def read(fields: Fields) -> Settings:
        return {"window": (fields["sliding_window"] or 0) if not switch or fields[switch] else 0}

    def write(settings: Settings) -> dict[str, Any]:
        window = max(settings["windows"])
        return {"sliding_window": window or None} | ({switch: window > 0} if switch else {})

    return Codec(read, write)


def layer_types(default: Callable[[Fields], list[bool]], switch: str = "") -> Codec:
    """`sliding_window` in the layers that `layer_types` names; old files leave it to `default` which they are.

    Where the family has a field `switch`, it has to be on.
    """

    def read(fields: Fields) -> Settings:
        window = (fields["sliding_window"] or 0) if not switch or fields[switch] else 0
        types = fields.get("layer_types")
        unknown = set(types or ()) - {"sliding_attention", "full_attention"}
        if unknown:
            raise ExchangeError(f"The config.json has layer_types with {', '.join(sorted(unknown))}, unknown here.")
        near = [kind == "sliding_attention" for kind in types] if types else default(fields)
        pattern = "".join("L" if layer else "G" for layer in near)
        if not window or "L" not in pattern:
            return {"window": 0, "window_pattern": "L"}
        period = next(p for p in range(1, len(pattern) + 1) if all(a == b for a, b in zip(pattern, pattern[p:])))  # noqa: B905
        return {"window": window, "window_pattern": pattern[:period]}

    def write(settings: Settings) -> dict[str, Any]:
        windows = settings["windows"]
        kinds = ["sliding_attention" if window else "full_attention" for window in windows]
        fields = {"sliding_window": max(windows) or None, "layer_types": kinds}
        return fields | ({switch: any(windows)} if switch else {})

    return Codec(read, write)
