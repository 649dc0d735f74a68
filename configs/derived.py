"""What follows from a config: sizes and scales that settings leave to each other, and which kind of network it is."""

from __future__ import annotations

from typing import Any

from configs.schema import Config, Data

# Linear maps that can have low-rank matrices beside them.
LORA_TARGETS = ("query", "key", "value", "output", "up", "gate", "down", "latent", "query_latent", "key_rotated")

# What a layer computes and --model.remat can keep, by name: results of linear maps and, of kernels, what they hand on.
LAYER_RESULTS = (*LORA_TARGETS, "beta", "output_gate", "router", "gates", "attention")

# Sources of rows that are made up as they are needed, for networks that predict what comes next.
TASKS = ("induction", "recall", "copy", "regression", "lookup", "lags")


def in_use(value: Any) -> bool:
    """Whether a setting that is off at 0 is on; one that only a compiled program knows (`train/together.py`) is."""
    return not isinstance(value, int | float) or value != 0


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
