"""What a foreign checkpoint is to the rest of this package: its config.json, its tensors one at a time, its tokenizer.

A file format is whatever can be opened as `Foreign`: a Hugging Face folder is one (`folder.py`), a GGUF file another
(`gguf.py`, which speaks in the terms of a Hugging Face folder of the same network). What a tensor means is said once,
in `families.py`, in those terms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np


class TensorSource(Protocol):
    """Named tensors in files, of which one at a time is read into memory."""

    def names(self) -> Iterable[str]:
        """The name of every tensor, as `transformers` calls it (`model.layers.0.self_attn.q_proj.weight`)."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape as `transformers` has it (a linear map is [outputs, inputs]), without reading it."""
        ...

    def read(self, name: str) -> np.ndarray:
        """The tensor: float32, float16 or (`ml_dtypes`) bfloat16; values as `transformers` would hold them."""
        ...


@dataclasses.dataclass(frozen=True)
class Foreign:
    """An opened checkpoint that is not ours; nothing but headers has been read."""

    name: str  # for messages and as the name of the config: `SmolLM2-135M`
    config: dict[str, Any]  # as in config.json, with `model_type` and the field names of `transformers`
    tensors: TensorSource
    tokenizer_json: str | None  # the tokenizers library's JSON, or None where there is only another kind
    # How messages become a text, in the terms of tokenizer_config.json: chat_template, bos_token, eos_token (names).
    chat: dict[str, str] = dataclasses.field(default_factory=dict)


class ExchangeError(RuntimeError):
    """A foreign checkpoint that cannot be read or written; the message names the file, field or tensor."""
