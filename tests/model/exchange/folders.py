"""Hugging Face folders with random tensors, made without `transformers` by the published format of safetensors."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 19, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 10, "rms_norm_eps": 1e-5, "rope_theta": 300.0,
    "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip


def llama_tensors(config: dict[str, Any] = LLAMA, seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor of a Llama of `config`, float32."""
    D, F, V, H = (config[name] for name in ("hidden_size", "intermediate_size", "vocab_size", "head_dim"))
    queries, keys = config["num_attention_heads"] * H, config["num_key_value_heads"] * H
    shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,), "lm_head.weight": (V, D)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.self_attn.q_proj.weight": (queries, D), f"{at}.self_attn.k_proj.weight": (keys, D),
            f"{at}.self_attn.v_proj.weight": (keys, D), f"{at}.self_attn.o_proj.weight": (D, queries),
            f"{at}.mlp.gate_proj.weight": (F, D), f"{at}.mlp.up_proj.weight": (F, D),
            f"{at}.mlp.down_proj.weight": (D, F), f"{at}.input_layernorm.weight": (D,),
            f"{at}.post_attention_layernorm.weight": (D,),
        }  # fmt: skip
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> str:
    """config.json and model.safetensors; returns the folder as a flag gives it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}
    header, start = {}, 0
    for name, values in tensors.items():
        end = start + values.nbytes
        header[name] = {
            "dtype": names[values.dtype.name], "shape": list(values.shape), "data_offsets": [start, end],
        }  # fmt: skip
        start = end
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for values in tensors.values():
            stream.write(values.tobytes())
    return str(folder)
