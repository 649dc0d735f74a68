"""Attention by `jax.nn.dot_product_attention`: cuDNN's flash kernel on a GPU, plain XLA elsewhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from model.sharding import platform


def fused(
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    mask_BTS: jax.Array,
    bias_BNTS: jax.Array | None = None,
    *,
    scale: float | None = None,
) -> jax.Array:
    """The output of `dense` without its weights; knows neither soft-cap nor sinks. Values may be narrower than keys."""
    bias = None if bias_BNTS is None else bias_BNTS.astype(query_BTNH.dtype)
    (T, H), S = query_BTNH.shape[1::2], key_BSKH.shape[1]
    fits = H % 8 == 0 and H <= 128 and T % 2 == S % 2 == 0  # What cuDNN can do, with a mask and a gradient.
    cudnn = fits and platform() == "gpu" and query_BTNH.dtype in (jnp.bfloat16, jnp.float16)
    width = value_BSKH.shape[-1]
    value_BSKH = jnp.pad(value_BSKH, ((0, 0), (0, 0), (0, 0), (0, H - width)))
    output_BTNH = jax.nn.dot_product_attention(
        query_BTNH, key_BSKH, value_BSKH, bias=bias, mask=mask_BTS[:, None], scale=scale,
        implementation="cudnn" if cudnn else None,
    )  # fmt: skip
    return output_BTNH[..., :width]
