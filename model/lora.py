"""Low-rank adaptation (Hu et al. 2021): train small matrices beside frozen ones, then add them in for good."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from configs.schema import Config

LORA = ("lora_in", "lora_out")


def is_trained(config: Config, path: str) -> bool:
    """Whether the parameter at `path` is trained: all are, or with LoRA only its own."""
    return not config.model.lora_rank or path.rpartition("/")[2] in LORA


def merged(config: Config, params: Any) -> tuple[Config, Any]:
    """The same network without LoRA: kernel + lora_in lora_out * alpha / rank, computed in float32."""
    if not config.model.lora_rank:
        return config, params
    flat: dict[str, Any] = flatten_dict(params, sep="/")
    scale = config.model.lora_alpha / config.model.lora_rank
    for path in [path for path in flat if path.endswith(LORA[0])]:
        module = path.rpartition("/")[0]
        narrow, widen = (flat.pop(f"{module}/{name}").astype(jnp.float32) for name in LORA)  # [L,...,r], [L,r,...]
        L, rank = widen.shape[:2]
        added = jnp.einsum("Lir,Lro->Lio", narrow.reshape(L, -1, rank), widen.reshape(L, rank, -1)) * scale
        kernel = flat[f"{module}/kernel"]
        flat[f"{module}/kernel"] = (kernel.astype(jnp.float32) + added.reshape(kernel.shape)).astype(kernel.dtype)
    model = dataclasses.replace(config.model, lora_rank=0)
    return dataclasses.replace(config, model=model), unflatten_dict(flat, sep="/")
