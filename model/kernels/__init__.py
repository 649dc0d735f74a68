"""The ways to compute softmax(QK^T/sqrt(d))V, one file each, behind one call."""

from __future__ import annotations

import jax

from configs.schema import Config
from model.kernels.dense import dense
from model.kernels.fused import fused


def choose(config: Config) -> str:
    """The kernel that `model.kernel` means here: `fused` on a GPU where it can do what is asked, else `dense`.

    Elsewhere than on a GPU `fused` compiles to the same XLA operations as `dense` and saves nothing.
    """
    model = config.model
    if model.kernel != "auto":
        return model.kernel
    able = not (model.attention_softcap or model.attention_sinks)
    return "fused" if able and jax.default_backend() == "gpu" else "dense"


__all__ = ["choose", "dense", "fused"]
