"""RoPE's fields of a config.json, of which there are two generations, and the settings that they mean.

The old ones are `rope_theta` and `rope_scaling` (Gemma 3: `rope_local_base_freq` too), the new one is
`rope_parameters`, for Gemma 3 by kind of layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from model.exchange.settings import Codec, Fields, Settings
from model.exchange.source import ExchangeError

# Fields of each scaling and the settings that they are; LongRoPE is Phi-3's alone.
SCALINGS: dict[str, dict[str, str]] = {
    "linear": {"factor": "rope_scaling_factor"},
    "llama3": {
        "factor": "rope_scaling_factor",
        "original_max_position_embeddings": "rope_original_length",
        "low_freq_factor": "rope_slow",
        "high_freq_factor": "rope_fast",
    },
    "yarn": {
        "factor": "rope_scaling_factor",
        "original_max_position_embeddings": "rope_original_length",
        "beta_slow": "rope_slow",
        "beta_fast": "rope_fast",
        "attention_factor": "rope_attention_factor",
    },
}


def rope(local_base: float = 0.0) -> Codec:
    """Base and scaling; `local_base` is that of layers with a window where the family has one of its own."""

    def read(fields: Fields) -> Settings:
        params = _parameters(fields)
        settings = _base(params, fields)
        if settings["rope_fraction"] != 1:
            raise ExchangeError(
                f"The config.json has partial_rotary_factor={settings['rope_fraction']}, which a network of the kind "
                f"{fields['model_type']} does not have."
            )
        if local_base:
            near = (fields["rope_parameters"] or {}).get("sliding_attention") or {}
            if near.get("rope_type", "default") != "default":
                raise ExchangeError(
                    f"The config.json has RoPE scaling {near['rope_type']!r} in layers with a window; only layers "
                    f"without one can have a scaling here."
                )
            settings["rope_local_base"] = float(near.get("rope_theta") or fields["rope_local_base_freq"])
        return settings | _scaling(params, fields)

    def write(settings: Settings) -> dict[str, Any]:
        fields: dict[str, Any] = {"rope_theta": settings["rope_base"], "rope_scaling": None}
        if local_base:
            fields["rope_local_base_freq"] = settings.get("rope_local_base") or settings["rope_base"]
        if settings["rope_scaling"] in SCALINGS:
            names = SCALINGS[settings["rope_scaling"]]
            scaling = {theirs: settings[ours] for theirs, ours in names.items()}
            fields["rope_scaling"] = {"rope_type": settings["rope_scaling"]} | scaling
        return fields

    return Codec(read, write)


def phi3_rope() -> Codec:
    """Base, rotated share, and LongRoPE."""

    def read(fields: Fields) -> Settings:
        params = _parameters(fields)
        kind = params.get("rope_type") or params.get("type") or "default"
        settings = _base(params, fields) | {"rope_scaling": "none"}
        if kind == "default":
            return settings
        if kind not in ("longrope", "su", "yarn"):  # The first files call it by the other two names.
            raise _unknown(kind, "default, longrope")
        length = fields["original_max_position_embeddings"] or params["original_max_position_embeddings"]
        factor = float(params.get("factor") or fields["max_position_embeddings"] / length)
        return settings | {
            "rope_scaling": "longrope",
            "rope_scaling_factor": max(factor, 1.0),
            "rope_original_length": int(length),
            "rope_factors": ",".join(map(repr, map(float, params["short_factor"]))),
            "rope_long_factors": ",".join(map(repr, map(float, params["long_factor"]))),
            "rope_attention_factor": float(params.get("attention_factor") or 0.0),
        }

    def write(settings: Settings) -> dict[str, Any]:
        fields: dict[str, Any] = {"rope_theta": settings["rope_base"], "rope_scaling": None}
        fields["partial_rotary_factor"] = settings["rope_fraction"]
        if settings["rope_scaling"] == "longrope":
            fields["original_max_position_embeddings"] = settings["rope_original_length"]
            fields["rope_scaling"] = {
                "rope_type": "longrope",
                "short_factor": list(settings["rope_factors"]),
                "long_factor": list(settings["rope_long_factors"]),
                "attention_factor": settings["rope_attention_factor"],
            }
        return fields

    return Codec(read, write)


def _parameters(fields: Fields) -> dict[str, Any]:
    """What is said about all layers, or those without a window."""
    params = dict(fields["rope_parameters"] or {})
    if "full_attention" in params or "sliding_attention" in params:
        params = dict(params.get("full_attention") or {})
    return params | (fields["rope_scaling"] or {})


def _base(params: dict[str, Any], fields: Fields) -> Settings:
    share = params.get("partial_rotary_factor") or fields["partial_rotary_factor"] or 1.0
    return {"rope_base": float(params.get("rope_theta") or fields["rope_theta"]), "rope_fraction": float(share)}


def _scaling(params: dict[str, Any], fields: Fields) -> Settings:
    kind = params.get("rope_type") or params.get("type") or "default"
    if kind == "default":
        return {"rope_scaling": "none"}
    if kind not in SCALINGS:
        raise _unknown(kind, ", ".join(("default", *SCALINGS)))
    if params.get("truncate") is False:
        raise ExchangeError(f"The config.json has RoPE scaling {kind} with truncate=False; only True is known here.")
    # Where a file has this field beside the others too, it is the one that counts.
    length = fields["original_max_position_embeddings"] or params.get("original_max_position_embeddings")
    length = length or fields["max_position_embeddings"]
    factor = params.get("factor") or fields["max_position_embeddings"] / length
    given = params | {"original_max_position_embeddings": length, "factor": factor}
    if kind == "yarn":
        given["attention_factor"] = _yarn_attention_factor(params, factor)
        given["beta_fast"], given["beta_slow"] = params.get("beta_fast") or 32, params.get("beta_slow") or 1
    as_type: dict[str, Callable[[Any], Any]] = {"rope_original_length": int}
    return {"rope_scaling": kind} | {
        ours: as_type.get(ours, float)(given[theirs]) for theirs, ours in SCALINGS[kind].items()
    }


def _unknown(kind: str, known: str) -> ExchangeError:
    return ExchangeError(f"The config.json has RoPE scaling {kind!r}; for this kind of network, known are {known}.")


def _yarn_attention_factor(params: dict[str, Any], factor: float) -> float:
    """0 for the method's own; DeepSeek's two numbers make another."""
    if params.get("attention_factor"):
        return float(params["attention_factor"])
    one, every = params.get("mscale"), params.get("mscale_all_dim")
    if not (one and every) or factor <= 1:
        return 0.0
    return (0.1 * one * math.log(factor) + 1) / (0.1 * every * math.log(factor) + 1)
