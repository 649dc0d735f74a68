"""Attention by `jax.nn.dot_product_attention`: cuDNN's flash kernel on a GPU, plain XLA elsewhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def fused(
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    mask_BTS: jax.Array,
    bias_BNTS: jax.Array | None = None,
) -> jax.Array:
    """The output [B,T,N,H] of `dense` without its weights; knows neither soft-cap nor sinks."""
    bias = None if bias_BNTS is None else bias_BNTS.astype(query_BTNH.dtype)
    cudnn = jax.default_backend() == "gpu" and query_BTNH.dtype in (jnp.bfloat16, jnp.float16)
    return jax.nn.dot_product_attention(
        query_BTNH, key_BSKH, value_BSKH, bias=bias, mask=mask_BTS[:, None], implementation="cudnn" if cudnn else None
    )
