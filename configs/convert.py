"""Configs as plain dictionaries (config.json), their differences, and the checks that need no network."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterator
from typing import Any

from configs import versions
from configs.schema import SECTIONS, Config, ConfigError, Data

# Linear maps that can have low-rank matrices beside them.
LORA_TARGETS = ("query", "key", "value", "output", "up", "gate", "down", "latent", "query_latent", "key_rotated")

# What a layer computes and --model.remat can keep, by name: results of linear maps and, of kernels, what they hand on.
LAYER_RESULTS = (*LORA_TARGETS, "beta", "output_gate", "router", "gates", "attention")
REMAT_POLICIES = ("none", "dots", "minimal", "qkv", "full", "offload")

# Sources of rows that are made up as they are needed, for networks that predict what comes next.
TASKS = ("induction", "recall", "copy", "regression", "lookup", "lags")

# Optimizers whose updates have the same size whatever that of the gradient is, so that `model.base_width` has rules.
WIDTH_RULES = ("adamw", "lion", "schedule_free")

# What kernels cannot do: by which setting it is asked for, and whether a value of it does.
KERNELS_WITHOUT: tuple[tuple[tuple[str, ...], str, Callable[[Any], bool], str], ...] = (
    (("fused",), "attention_softcap", bool, "soft-cap"),
    (("fused", "splash"), "attention_sinks", bool, "sinks"),
    (("splash",), "position", "alibi".__eq__, "penalty on distance"),
    (("splash", "ring", "gather"), "position", "relative".__eq__, "learned bias"),
)


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


def in_use(value: Any) -> bool:
    """Whether a setting that is off at 0 is on; one that only a compiled program knows (`train/together.py`) is."""
    return not isinstance(value, int | float) or value != 0


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


def check(config: Config) -> Config:
    """Return `config` if it can be run.

    Raises:
      ConfigError: a value outside its choices or range, or two settings that contradict each other.
    """
    check_network(config)
    _check_run(config)
    return config


def check_value(name: str, field: dataclasses.Field[Any], value: Any) -> None:
    """Refuse a value that its field does not allow, whatever the others are.

    Raises:
      ConfigError: names the flag, the value and what would be valid.
    """
    choices, at_least = field.metadata.get("choices"), field.metadata.get("at_least")
    if choices and value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"--{name}={value} is not one of {', '.join(choices)}.{hint}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"--{name}={value} is not a finite number.")
    if at_least is not None and value < at_least:
        raise ConfigError(f"--{name}={value} is too small: it must be at least {at_least:g}.")


def check_network(config: Config) -> Config:
    """Return `config` if its network can be built, whether or not it says what to train it on.

    Raises:
      ConfigError: a value outside its choices or range, or two settings that contradict each other.
    """
    for name, field, value in leaves(config):
        check_value(name, field, value)
    if config.model.dropout >= 1:
        raise ConfigError(f"--model.dropout={config.model.dropout} would drop everything: it must be below 1.")
    _check_remat(config.model.remat)
    _check_matmul(config)
    _check_base_width(config)
    if is_recurrent(config):
        _check_recurrent(config)
    else:
        _check_attention(config)
        _check_attention_kind(config)
    return config


def _check_remat(remat: str) -> None:
    for name in remat.split(","):
        if remat not in REMAT_POLICIES and name not in LAYER_RESULTS:
            near = difflib.get_close_matches(name, (*REMAT_POLICIES, *LAYER_RESULTS), n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ConfigError(
                f"--model.remat={remat}: {name!r} is neither a policy ({', '.join(REMAT_POLICIES)}) nor a result of a "
                f"layer that can be kept ({', '.join(LAYER_RESULTS)}).{hint}"
            )


def _check_matmul(config: Config) -> None:
    model = config.model
    if model.matmul == "default":
        return
    unable = (
        (is_recurrent(config), f"--model.network={model.network}", "--model.network=decoder"),
        (model.num_experts > 0, f"--model.num_experts={model.num_experts}", "--model.num_experts=0"),
        (model.attention == "latent", "--model.attention=latent", "--model.attention=gqa"),
    )
    for is_so, setting, instead in unable:
        if is_so:
            raise ConfigError(
                f"--model.matmul={model.matmul} is for linear maps alone, and {setting} multiplies otherwise too: "
                f"use --model.matmul=default, or {instead}."
            )


def _check_base_width(config: Config) -> None:
    model = config.model
    unable = (
        (model.network not in ("decoder", "encoder"), f"--model.network={model.network}", "--model.network=decoder"),
        (model.attention not in ("mha", "gqa", "mqa"), f"--model.attention={model.attention}", "--model.attention=gqa"),
        (model.num_experts > 0, f"--model.num_experts={model.num_experts}", "--model.num_experts=0"),
        (model.lora_rank > 0, f"--model.lora_rank={model.lora_rank}", "--model.lora_rank=0"),
        (model.scale_embeddings, "--model.scale_embeddings", "--nomodel.scale_embeddings"),
        (model.attention_scale > 0, f"--model.attention_scale={model.attention_scale}", "--model.attention_scale=0"),
        (
            config.optimizer.name not in WIDTH_RULES,
            f"--optimizer.name={config.optimizer.name}",
            f"--optimizer.name={WIDTH_RULES[0]}",
        ),
    )
    for is_so, given, instead in unable:
        if model.base_width and is_so:
            raise ConfigError(
                f"--model.base_width={model.base_width} has no rules for {given}: use {instead}, or "
                f"--model.base_width=0."
            )


def _check_recurrent(config: Config) -> None:
    """What an LSTM needs; settings of attention are left unused, so that `--model.network=lstm` fits any preset."""
    model = config.model
    if model.network == "lstm_encoder_decoder" and model.width % 2:
        raise ConfigError(
            f"--model.width={model.width} is odd: half of it reads the source forwards and half backwards."
        )


def _check_attention(config: Config) -> None:
    model = config.model
    if model.head_width == 0 and model.width % model.num_heads:
        raise ConfigError(
            f"--model.width={model.width} is not a multiple of --model.num_heads={model.num_heads}: "
            f"change one, or set --model.head_width."
        )
    if model.num_heads % num_kv_heads(config):
        raise ConfigError(
            f"--model.num_heads={model.num_heads} is not a multiple of --model.num_kv_heads={num_kv_heads(config)}."
        )
    rotates = model.position == "rope" and model.attention in ("mha", "gqa", "mqa")
    if rotates and head_width(config) % 2:
        raise ConfigError(
            f"The head width {head_width(config)} is odd, and --model.position=rope turns pairs of numbers: "
            f"set an even --model.head_width."
        )
    if not model.window_pattern or set(model.window_pattern) - {"L", "G"}:
        raise ConfigError(f"--model.window_pattern={model.window_pattern!r} must be made of the letters L and G.")
    for kernels, name, asks, what in KERNELS_WITHOUT:
        value = getattr(model, name)
        if model.kernel in kernels and asks(value):
            raise ConfigError(
                f"--model.kernel={model.kernel} knows no {what} (--model.{name}={value}): use --model.kernel=dense or "
                f"auto."
            )
    if model.attention in ("linear", "delta") and model.network != "decoder":
        raise ConfigError(
            f"--model.attention={model.attention} keeps a state of what came before, which --model.network="
            f"{model.network} has no use for: use --model.network=decoder, or another attention."
        )
    if not 0 < model.rope_fraction <= 1:
        raise ConfigError(f"--model.rope_fraction={model.rope_fraction} must be above 0 and at most 1.")
    if model.num_experts and not model.feed_forward:
        raise ConfigError(
            f"--model.num_experts={model.num_experts} are feed-forward layers, and --model.feed_forward=false "
            f"has none: change one."
        )
    if 0 < model.num_experts < model.experts_per_token:
        raise ConfigError(
            f"--model.experts_per_token={model.experts_per_token} is more than --model.num_experts={model.num_experts}."
        )
    unknown = sorted(set(model.lora_targets.split(",")) - {*LORA_TARGETS, "all"})
    if unknown:
        raise ConfigError(
            f"--model.lora_targets={model.lora_targets}: there is no linear map {unknown[0]!r}; there are "
            f"{', '.join(LORA_TARGETS)}, and all."
        )


def _check_attention_kind(config: Config) -> None:
    """Refuse settings that latent, linear and delta attention have no use for."""
    model = config.model
    if model.attention in ("linear", "delta"):
        if model.position in ("alibi", "relative"):
            raise ConfigError(
                f"--model.position={model.position} tells distances to keys, and --model.attention={model.attention} "
                f"keeps none: use --model.position=none, learned or sinusoidal (rope is not applied)."
            )
        defaults = {"window": 0, "attention_softcap": 0.0, "attention_scale": 0.0, "attention_sinks": False}
        useless: dict[str, Any] = {**defaults, "kernel": "auto"}
    elif model.attention == "latent":
        useless = {"rope_fraction": 1.0, "qkv_biases": False}
        if latent_rope_width(config) % 2:
            raise ConfigError(
                f"--model.latent_rope_width={model.latent_rope_width} is odd, and --model.position=rope turns pairs of "
                f"numbers: set an even one."
            )
    else:
        return
    if model.attention != "linear":
        useless["qk_norm"] = "none"
    for name, neutral in useless.items():
        if getattr(model, name) != neutral:
            raise ConfigError(
                f"--model.{name}={getattr(model, name)} has no meaning with --model.attention={model.attention}: "
                f"leave it at {neutral}."
            )


def _check_run(config: Config) -> None:
    train, data, optimizer = config.train, config.data, config.optimizer
    if train.batch_size % train.microbatches:
        raise ConfigError(
            f"--train.batch_size={train.batch_size} is not a multiple of --train.microbatches={train.microbatches}."
        )
    if train.rounds > 1 and config.mesh.stage == 1:
        raise ConfigError(
            f"--train.rounds={train.rounds} has no meaning with --mesh.stage=1: leave it at 1, or set stages."
        )
    if data.held_out >= 1:
        raise ConfigError(f"--data.held_out={data.held_out} leaves nothing to train on: it must be below 1.")
    longest = max(data.length, source_length(data) if translates(config) else 0)
    if config.model.position == "learned" and max_length(config) < longest:
        raise ConfigError(
            f"--model.max_length={config.model.max_length} is less than --data.length={data.length} or "
            f"--data.source_length={data.source_length}: the position table would end before the text does."
        )
    if data.masked > 1 or (fills_in(config) and data.masked == 0 and data.source != "coreference"):
        raise ConfigError(f"--data.masked={data.masked} must be above 0, so that there is something to learn, up to 1.")
    if translates(config) != bool(data.languages):
        raise ConfigError(
            f"--model.network={config.model.network} with --data.languages={data.languages!r}: a network that "
            f"translates needs pairs (such as --data.languages=en-de --data.source=tsv:FILE), and no other reads them."
        )
    if (config.tokenizer.source == "checkpoint") != bool(config.init_from):
        raise ConfigError(
            f"--tokenizer.source={config.tokenizer.source} with --init_from={config.init_from!r}: a checkpoint comes "
            f"with its tokenizer, so --tokenizer.source=checkpoint goes with --init_from, and only with it."
        )
    for name in ("beta1", "beta2", "ema_decay"):
        if getattr(optimizer, name) >= 1:
            raise ConfigError(f"--optimizer.{name}={getattr(optimizer, name)} must be below 1.")
        # Neighbours in bfloat16 are up to 2^-7 of their size apart: a fall by less than half of it rounds to none.
        if optimizer.state_dtype == "bfloat16" and name != "ema_decay" and getattr(optimizer, name) > 1 - 2**-8:
            raise ConfigError(
                f"--optimizer.{name}={getattr(optimizer, name)} with --optimizer.state_dtype=bfloat16: the average "
                f"could not fall, since so small a change rounds to none. It must be at most {1 - 2**-8:.3f}, or the "
                f"state float32."
            )
    if optimizer.decay_fraction > 1:
        raise ConfigError(f"--optimizer.decay_fraction={optimizer.decay_fraction} must be at most 1.")
    if optimizer.name == "schedule_free" and optimizer.beta1 == 0:
        raise ConfigError("--optimizer.beta1=0 leaves schedule_free without its average; 0.9 is usual.")
    if optimizer.name == "schedule_free" and optimizer.ema_decay:
        raise ConfigError(
            f"--optimizer.ema_decay={optimizer.ema_decay} with --optimizer.name=schedule_free averages twice: "
            f"set ema_decay to 0."
        )
    if optimizer.name == "schedule_free" and config.model.lora_rank:
        raise ConfigError(
            f"--model.lora_rank={config.model.lora_rank} cannot be trained with --optimizer.name=schedule_free: "
            f"use adamw."
        )
    if train.label_smoothing >= 1:
        raise ConfigError(f"--train.label_smoothing={train.label_smoothing} must be below 1.")


def head_width(config: Config) -> int:
    """Width H of one attention head."""
    return config.model.head_width or config.model.width // config.model.num_heads


def times_wider(config: Config) -> float:
    """By how much the network is wider than the one that its learning rate was found for (µP); 1 without one."""
    model = config.model
    return model.width / model.base_width if model.base_width else 1.0


def attention_scale(config: Config) -> float:
    """What the scores of attention are multiplied by: 1 / sqrt(head width) at the base width, then 1 / head width."""
    model = config.model
    if model.attention_scale:
        return model.attention_scale
    wider = 1.0 if model.head_width else times_wider(config)
    return (head_width(config) * wider) ** -0.5


def logit_scale(config: Config) -> float:
    """What output logits are multiplied by."""
    return config.model.logit_scale / times_wider(config)


def num_kv_heads(config: Config) -> int:
    """Number K of key/value heads."""
    model = config.model
    fewest = max(1, model.num_heads // 4)
    quarter = next(count for count in range(fewest, 0, -1) if model.num_heads % count == 0)
    return {"mqa": 1, "gqa": model.num_kv_heads or quarter}.get(model.attention, model.num_heads)


def latent_width(config: Config) -> int:
    """Latent attention: width of the vector that keys and values are made from."""
    return config.model.latent_width or 4 * head_width(config)


def latent_rope_width(config: Config) -> int:
    """Latent attention: width of the rotated key that all heads share, 0 without RoPE."""
    if config.model.position != "rope":
        return 0
    return config.model.latent_rope_width or max(2, head_width(config) // 4 * 2)


def feed_forward_width(config: Config) -> int:
    """Hidden width F of the feed-forward layer; two thirds of 4D if gated, so that the parameters stay the same."""
    model = config.model
    return model.feed_forward_width or (-(-8 * model.width // 3 // 8) * 8 if model.gated else 4 * model.width)


def max_length(config: Config) -> int:
    """Rows of a learned position table."""
    return config.model.max_length or config.data.length


def longest_text(config: Config) -> int | None:
    """The most tokens that the network can read at once; None if its positions have no end."""
    return max_length(config) if config.model.position == "learned" else None


def check_length(config: Config, length: int) -> None:
    """Refuse a text of `length` tokens that a learned position table has no rows for.

    Raises:
      ConfigError: names both numbers.
    """
    longest = longest_text(config)
    if longest is not None and length > longest:
        raise ConfigError(
            f"The text has {length} tokens, but this network's learned position table has {longest} rows: shorten it."
        )


def layer_windows(config: Config, num_layers: int) -> list[int]:
    """The sliding window of each of `num_layers` layers, 0 where there is none."""
    model = config.model
    pattern = [model.window if letter == "L" else 0 for letter in model.window_pattern]
    return [pattern[layer % len(pattern)] for layer in range(num_layers)]


def encoder_layers(config: Config) -> int:
    """Layers of the encoder of an encoder-decoder."""
    return config.model.encoder_layers or config.model.num_layers


def translates(config: Config) -> bool:
    """Whether the network reads a source and writes something else."""
    return config.model.network in ("encoder_decoder", "lstm_encoder_decoder")


def fills_in(config: Config) -> bool:
    """Whether the run learns to fill in masked tokens (and pronouns), rather than what comes next."""
    return config.model.network == "encoder" or config.data.source == "coreference"


def is_made_up(data: Data) -> bool:
    """Whether what is read are examples of a task, one in each row, of which only some words are to be predicted."""
    return data.source.partition(":")[0] in TASKS


def is_recurrent(config: Config) -> bool:
    """Whether the network is an LSTM, of either kind."""
    return config.model.network in ("lstm", "lstm_encoder_decoder")


def source_length(data: Data) -> int:
    """Tokens S in one row of source text."""
    return data.source_length or data.length


def has_final_norm(config: Config) -> bool:
    """Whether there is a norm after the last layer."""
    model = config.model
    return model.final_norm == "on" or (model.final_norm == "auto" and model.norm_position != "post")
