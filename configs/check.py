"""Which configs can be: values, and settings that contradict each other; checks that need no network."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable
from typing import Any

from configs.convert import leaves
from configs.derived import (
    LAYER_RESULTS,
    LORA_TARGETS,
    fills_in,
    head_width,
    is_recurrent,
    latent_rope_width,
    longest_text,
    max_length,
    num_kv_heads,
    source_length,
    translates,
)
from configs.schema import Config, ConfigError

REMAT_POLICIES = ("none", "dots", "minimal", "qkv", "full", "offload")

# Optimizers whose updates have the same size whatever that of the gradient is, so that `model.base_width` has rules.
WIDTH_RULES = ("adamw", "lion", "schedule_free")

# What kernels cannot do: by which setting it is asked for, and whether a value of it does.
KERNELS_WITHOUT: tuple[tuple[tuple[str, ...], str, Callable[[Any], bool], str], ...] = (
    (("fused",), "attention_softcap", bool, "soft-cap"),
    (("fused", "splash"), "attention_sinks", bool, "sinks"),
    (("splash",), "position", "alibi".__eq__, "penalty on distance"),
    (("splash", "ring", "gather"), "position", "relative".__eq__, "learned bias"),
)


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
