"""Products of matrices in 8 bits: what is multiplied is scaled to fill a small type, and the result is scaled back.

Each token and each output has a scale of its own, the largest absolute value among the numbers that are summed over
(Dettmers et al. 2022, "LLM.int8()", section 2.1, vector-wise quantization). The package qwix rounds and multiplies.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from configs.schema import ConfigError

TYPES = {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn}


def multiply(x: jax.Array, kernel: jax.Array, count: int, kind: str) -> jax.Array:
    """About the product [..., *outputs] of x [..., *inputs] and a kernel [*inputs, *outputs], both of the same dtype.

    The gradient is that of the exact product, computed in that dtype.

    Args:
      count: axes of inputs.
      kind: int8 or fp8.

    Raises:
      ConfigError: qwix is not installed.
    """
    y: Any = _multiply(x, kernel, count, kind)
    return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _multiply(x: jax.Array, kernel: jax.Array, count: int, kind: str) -> jax.Array:
    qwix: Any = _qwix(kind)
    lead, outputs = tuple(range(x.ndim - count)), tuple(range(count, kernel.ndim))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # qwix mixes both.
        small_x = qwix.quantize(x, TYPES[kind], channelwise_axes=lead)
        small_kernel = qwix.quantize(kernel, TYPES[kind], channelwise_axes=outputs)
        dimensions = (tuple(range(x.ndim - count, x.ndim)), tuple(range(count))), ((), ())
        return qwix.dot_general(small_x, small_kernel, dimensions).astype(x.dtype)


def _forward(x: jax.Array, kernel: jax.Array, count: int, kind: str) -> tuple[jax.Array, Any]:
    return _multiply(x, kernel, count, kind), (x, kernel)


def _backward(count: int, kind: str, kept: Any, d_y: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    lead, outputs = tuple(range(x.ndim - count)), kernel.ndim - count
    d_x = jax.lax.dot_general(
        d_y, kernel, ((tuple(range(d_y.ndim - outputs, d_y.ndim)), tuple(range(count, kernel.ndim))), ((), ()))
    )
    return d_x, jax.lax.dot_general(x, d_y, ((lead, lead), ((), ())))


_multiply.defvjp(_forward, _backward)


def _qwix(kind: str) -> Any:
    try:
        import qwix
    except ImportError as error:
        raise ConfigError(
            f"--model.matmul={kind} needs the package qwix, which is not installed: pip install 'seq2see[quantized]', "
            f"or leave it at default."
        ) from error
    return qwix
