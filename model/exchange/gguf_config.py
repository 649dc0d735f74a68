"""The settings of a GGUF file in the terms of a Hugging Face `config.json`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from model.exchange.source import ExchangeError

Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Rules:
    """What files of one architecture (`general.architecture`) have of their own.

    Attributes:
      model_type: what `transformers` calls it.
      names: tensors of a layer with other names in `transformers` than usual; {expert} is an expert's number.
      permuted: whether the rows of queries and keys are stored in another order.
      norms_plus_one: whether the scales of norms are stored with the 1 that Gemma's network adds to them.
      settings: settings beyond those that all have, given the function that reads a key and the config so far.
    """

    model_type: str
    names: dict[str, str] = dataclasses.field(default_factory=dict)
    permuted: bool = False
    norms_plus_one: bool = False
    settings: Callable[[Callable[..., Any], dict[str, Any]], dict[str, Any]] = lambda get, config: {}


def hugging_face_config(
    get: Callable[..., Any], shapes: Shapes, rope: dict[str, np.ndarray], name: str
) -> dict[str, Any]:
    """The `config.json` that a Hugging Face folder of the network in a file would have.

    Args:
      get: gives the value of a metadata key, or the default that follows, by default None.
      shapes: of the file's tensors, in the order of `transformers`, by the file's names.
      rope: the file's tensors that say how rotary embeddings are stretched.
      name: of the file, for messages.

    Raises:
      ExchangeError: a setting that all files need is missing, or one has a value that is not known here.
    """
    architecture = get("general.architecture")
    rules = RULES[architecture]

    def of(key: str, *default: Any) -> Any:
        """The value of a key of this architecture; one without a default has to be there."""
        value = get(f"{architecture}.{key}")
        if value is None and not default:
            raise ExchangeError(f"{name} has no {architecture}.{key}.")
        return default[0] if value is None else value

    heads, width = of("attention.head_count"), of("embedding_length")
    if "token_embd.weight" not in shapes:
        raise ExchangeError(f"{name} has no tensor token_embd.weight.")
    ends = [get(f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot", "eom")]
    config = {
        "model_type": rules.model_type,
        "hidden_size": width,
        "num_hidden_layers": of("block_count"),
        "intermediate_size": of("feed_forward_length", 0),
        "num_attention_heads": heads,
        "num_key_value_heads": of("attention.head_count_kv", heads),
        "head_dim": of("attention.key_length", width // heads),
        "rms_norm_eps": of("attention.layer_norm_rms_epsilon"),
        "rope_theta": of("rope.freq_base", 10_000.0),
        "max_position_embeddings": of("context_length"),
        "vocab_size": shapes["token_embd.weight"][0],
        "tie_word_embeddings": "output.weight" not in shapes,
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in shapes,
        "mlp_bias": "blk.0.ffn_up.bias" in shapes,
        "bos_token_id": get("tokenizer.ggml.bos_token_id"),
        # Models that chat end a turn, or a message to a tool, with tokens of their own.
        "eos_token_id": list(dict.fromkeys(number for number in ends if number is not None)) or None,
    }
    for key in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if isinstance(config[key], list):
            if len(set(config[key])) > 1:
                raise ExchangeError(f"{name}: {key} differs between layers, which is not known here.")
            config[key] = config[key][0]
    config["rope_scaling"] = _rope_scaling(of, config, rope, name)
    return config | rules.settings(of, config)


def _rope_scaling(
    of: Callable[..., Any], config: dict[str, Any], rope: dict[str, np.ndarray], name: str
) -> dict[str, Any] | None:
    original = of("rope.scaling.original_context_length", config["max_position_embeddings"])
    if "rope_freqs.weight" in rope:
        return _llama3(rope["rope_freqs.weight"], config, name)
    if "rope_factors_long.weight" in rope:
        factors = {kind: rope[f"rope_factors_{kind}.weight"].tolist() for kind in ("long", "short")}
        return {
            "rope_type": "longrope",
            "long_factor": factors["long"],
            "short_factor": factors["short"],
            "original_max_position_embeddings": original,
        }
    kind = of("rope.scaling.type", "none")
    if kind == "none":
        return None
    factor = of("rope.scaling.factor", 1.0)
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    raise ExchangeError(f"{name}: rope.scaling.type is {kind!r}; none, linear and yarn are known here.")


def _llama3(factors: np.ndarray, config: dict[str, Any], name: str) -> dict[str, Any]:
    """Llama 3's scaling, of which a file has only the factor of each wave; by what made it, if it is the usual one."""
    scaling = {
        "rope_type": "llama3",
        "factor": float(factors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    waves = 2 * math.pi * config["rope_theta"] ** (np.arange(factors.size, dtype=np.float64) / factors.size)
    turns = scaling["original_max_position_embeddings"] / waves
    smooth = np.clip((turns - 1.0) / (4.0 - 1.0), 0.0, 1.0)
    expected = 1.0 / ((1.0 - smooth) / scaling["factor"] + smooth)
    if not np.allclose(factors, expected, rtol=1e-3):
        raise ExchangeError(f"{name}: its rope_freqs are not those of Llama 3's scaling, and no others are known here.")
    return scaling


def _llama(of: Callable[..., Any], config: dict[str, Any]) -> dict[str, Any]:
    return {"head_dim": of("attention.key_length", of("rope.dimension_count", config["head_dim"]))} | (
        {
            "model_type": "mixtral",
            "num_local_experts": of("expert_count"),
            "num_experts_per_tok": of("expert_used_count"),
        }
        if of("expert_count", 0)
        else {}
    )


def _qwen3moe(of: Callable[..., Any], config: dict[str, Any]) -> dict[str, Any]:
    return {
        "moe_intermediate_size": of("expert_feed_forward_length"),
        "num_experts": of("expert_count"),
        "num_experts_per_tok": of("expert_used_count"),
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _gemma(of: Callable[..., Any], config: dict[str, Any], largest: int) -> dict[str, Any]:
    """What Gemma 2 and 3 share; the `largest` of the family, known by its layers, scales scores by width / heads."""
    by_width = config["num_hidden_layers"] == largest
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": (
            config["hidden_size"] // config["num_attention_heads"] if by_width else config["head_dim"]
        ),
        "sliding_window": of("attention.sliding_window"),
        "attn_logit_softcapping": of("attn_logit_softcapping", None),
        "final_logit_softcapping": of("final_logit_softcapping", None),
    }


def _layer_types(config: dict[str, Any], period: int) -> list[str]:
    """Each `period`-th layer sees everything, the others have a window."""
    layers = range(1, config["num_hidden_layers"] + 1)
    return ["sliding_attention" if layer % period else "full_attention" for layer in layers]


def _gemma2(of: Callable[..., Any], config: dict[str, Any]) -> dict[str, Any]:
    return _gemma(of, config, largest=46) | {"layer_types": _layer_types(config, 2)}


def _gemma3(of: Callable[..., Any], config: dict[str, Any]) -> dict[str, Any]:
    return _gemma(of, config, largest=62) | {
        "layer_types": _layer_types(config, 6),
        "sliding_window_pattern": 6,
        "rope_local_base_freq": of("rope.freq_base_swa", 10_000.0),
    }


def _phi3(of: Callable[..., Any], config: dict[str, Any]) -> dict[str, Any]:
    original = of("rope.scaling.original_context_length", config["max_position_embeddings"])
    return {
        "partial_rotary_factor": of("rope.dimension_count", config["head_dim"]) / config["head_dim"],
        "original_max_position_embeddings": original,
        "sliding_window": of("attention.sliding_window", 0) or None,
    }


_NORMS_BEHIND = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_GEMMA = {"ffn_norm": "pre_feedforward_layernorm", **_NORMS_BEHIND}
RULES = {
    "llama": Rules(
        "llama",
        {
            "ffn_gate_inp": "block_sparse_moe.gate",
            "ffn_gate_exps": "block_sparse_moe.experts.{expert}.w1",
            "ffn_down_exps": "block_sparse_moe.experts.{expert}.w2",
            "ffn_up_exps": "block_sparse_moe.experts.{expert}.w3",
        },
        permuted=True,
        settings=_llama,
    ),
    "qwen2": Rules("qwen2", settings=lambda of, config: {"use_sliding_window": False}),
    "qwen3": Rules("qwen3", settings=lambda of, config: {"use_sliding_window": False}),
    "qwen3moe": Rules(
        "qwen3_moe",
        {
            "ffn_gate_inp": "mlp.gate",
            "ffn_gate_exps": "mlp.experts.{expert}.gate_proj",
            "ffn_down_exps": "mlp.experts.{expert}.down_proj",
            "ffn_up_exps": "mlp.experts.{expert}.up_proj",
        },
        settings=_qwen3moe,
    ),
    "gemma2": Rules("gemma2", _GEMMA, norms_plus_one=True, settings=_gemma2),
    "gemma3": Rules("gemma3_text", _GEMMA, norms_plus_one=True, settings=_gemma3),
    "phi3": Rules("phi3", {"ffn_up": "mlp.gate_up_proj"}, settings=_phi3),
    "olmo2": Rules("olmo2", _NORMS_BEHIND),
}
