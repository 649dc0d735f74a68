"""GGUF files of small networks with random weights, as llama.cpp's converters write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from gguf import GGMLQuantizationType, GGUFWriter, quants

HEADS, KV_HEADS, HEAD, WIDTH, HIDDEN, LAYERS = 4, 2, 8, 32, 64, 2
TEXTS = ["The quick brown fox, 12345 times.\n", "def f(x):\n    return x * 2\n", "Größe, naïve, 中文😀\n"] * 5


def byte_level_words() -> tuple[list[str], list[str]]:
    """Tokens and merges of a small byte-level BPE; the first two tokens are special."""
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(TEXTS, vocab_size=320, special_tokens=["<|begin|>", "<|end|>"], show_progress=False)
    import json

    model = json.loads(made.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [" ".join(pair) for pair in model["merges"]]


def permuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """Rows as files of the llama architecture have them: the two of a rotated pair follow each other."""
    width = weights.shape[0] // heads
    order = [
        head * width + half * (width // 2) + i for head in range(heads) for i in range(width // 2) for half in (0, 1)
    ]
    return weights[order]


def llama_tensors(random: np.random.Generator, vocabulary: int) -> dict[str, np.ndarray]:
    """Tensors of a Llama by the names and in the order of `transformers`; norms are near one."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, WIDTH),
        "model.norm.weight": (WIDTH,),
    }
    for layer in range(LAYERS):
        place = f"model.layers.{layer}"
        for name, rows in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            shapes[f"{place}.self_attn.{name}_proj.weight"] = (rows * HEAD, WIDTH)
        shapes[f"{place}.self_attn.o_proj.weight"] = (WIDTH, HEADS * HEAD)
        shapes |= {f"{place}.mlp.{name}_proj.weight": (HIDDEN, WIDTH) for name in ("gate", "up")}
        shapes[f"{place}.mlp.down_proj.weight"] = (WIDTH, HIDDEN)
        shapes |= {f"{place}.{name}.weight": (WIDTH,) for name in ("input_layernorm", "post_attention_layernorm")}
    return {
        name: (random.normal(size=shape) * (0.3 if len(shape) > 1 else 0.1) + (len(shape) == 1)).astype(np.float32)
        for name, shape in shapes.items()
    }


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write_llama(path: Path, kind: str = "F32", metadata: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
    """Writes a Llama with matrices stored as `kind`, and gives its tensors as `transformers` has them.

    `metadata`: keys of strings or numbers to set besides; None leaves a key out.
    """
    tokens, merges = byte_level_words()
    tensors = llama_tensors(np.random.default_rng(0), len(tokens))
    settings: dict[str, Any] = {
        "llama.block_count": LAYERS, "llama.context_length": 128, "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": HIDDEN, "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS, "llama.rope.freq_base": 500.0, "llama.rope.dimension_count": HEAD,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1, **(metadata or {}),
    }  # fmt: skip
    with_file = Writer(path, settings)
    with_file.add_array("tokenizer.ggml.tokens", tokens)
    with_file.add_array("tokenizer.ggml.merges", merges)
    with_file.add_array("tokenizer.ggml.token_type", [3, 3] + [1] * (len(tokens) - 2))
    for name, tensor in tensors.items():
        own = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}.get(name)
        if own is None:
            _, _, layer, inner = name.removesuffix(".weight").split(".", 3)
            own = f"blk.{layer}.{GGUF_NAMES[inner]}.weight"
        if own.endswith(("attn_q.weight", "attn_k.weight")):
            tensor = permuted(tensor, HEADS if own.endswith("attn_q.weight") else KV_HEADS)
        stored = GGMLQuantizationType[kind if tensor.ndim > 1 else "F32"]
        with_file.add_tensor(own, quants.quantize(tensor, stored), raw_dtype=stored)
    with_file.close()
    return tensors


class Writer(GGUFWriter):
    """A file with metadata of strings and numbers; `close` writes it."""

    def __init__(self, path: Path, metadata: dict[str, Any], architecture: str = "llama") -> None:
        super().__init__(str(path), architecture)
        for key, value in metadata.items():
            if isinstance(value, bool):
                self.add_bool(key, value)
            elif value is not None:
                {str: self.add_string, int: self.add_uint32, float: self.add_float32}[type(value)](key, value)

    def close(self) -> None:
        self.write_header_to_file()
        self.write_kv_data_to_file()
        self.write_tensors_to_file()
        super().close()
