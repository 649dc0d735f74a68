"""Weights and caches that take less memory than what is computed with: bfloat16, and integers of 8 bits with a scale.

Writing a token reads every weight once, so its time is that of reading memory: half the bytes are half the time, where
they are widened on the way. 8 bits are symmetric, with a scale for each output, which multiplies the sum (Dettmers et
al. 2022, "LLM.int8()", section 2.1, of the weights alone); activations stay as they are.

XLA on a CPU takes bfloat16 through float32 wherever an array is sliced, whole: a network of 135M parameters took 100 ms
per token to 66 ms in float32. So there the bits are kept as uint16 and made float32 here, slice by slice.

Shapes: M vectors, I inputs, O outputs, V vocabulary, D model width.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from configs.schema import ConfigError
from model.sharding import platform

KINDS = ("", "bfloat16", "int8")
SCALE = "scale_of_{}"  # The variable beside a packed kernel or embedding.
LARGE = 1 << 22  # A matrix with more numbers is widened piece by piece.
PIECE = 2048  # Outputs of such a piece: what is widened at once stays in a cache.


def pack(module: nn.Module, params: Any, kind: str = "") -> Any:
    """Parameters for reading only, in fewer bytes: those of linear maps and of a table of tokens' vectors.

    Args:
      kind: bfloat16, int8, or "" for as they are (on a CPU, bfloat16 in the form that is fast there).

    Raises:
      ConfigError: there is no such kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"--weights={kind}: it must be one of bfloat16 and int8, or nothing.")
    maps = _maps(module, params)

    def walk(tree: Any, path: tuple[str, ...]) -> Any:
        packed: dict[str, Any] = {}
        for name, value in tree.items():
            if isinstance(value, dict):
                packed[name] = walk(value, (*path, name))
            elif (*path, name) not in maps:
                packed[name] = value
            elif kind == "int8":
                packed[name], packed[SCALE.format(name)] = _to_int8(value, maps[*path, name])
            else:
                dtype = jnp.dtype(kind or value.dtype)
                packed[name] = to_bits(value, dtype) if dtype == jnp.bfloat16 else value.astype(dtype)
        return packed

    # Without donation: the caller may go on to use the parameters.
    return jax.jit(lambda params: walk(params, ()))(params)


def _maps(module: nn.Module, params: Any) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Paths of all parameters that can be packed, and their axes of inputs, counted from the end."""
    from model.layers import Linear
    from model.source import Source
    from model.transformer import Embedding

    found: dict[tuple[str, ...], tuple[int, ...]] = {}

    def look(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        layer = context.module
        if isinstance(layer, Linear):
            inputs, outputs = len(layer.inputs), len(layer.outputs)
            found[(*layer.path, "kernel")] = tuple(range(-inputs - outputs, -outputs))
        elif isinstance(layer, Embedding) and layer.axis == "vocabulary":
            found[(*layer.path, "embedding")] = (-1,)
        return call(*args, **kwargs)

    def run(params: Any) -> Any:
        tokens_BT = jnp.zeros((1, 1), jnp.int32)
        source = Source.of(tokens_BT) if hasattr(module, "encode") else None
        with nn.intercept_methods(look):
            return module.apply({"params": params}, tokens_BT, source=source)

    jax.eval_shape(run, params)
    return found


def _to_int8(weights: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Integers from -127 to 127, and the scales float32, without the axes of inputs."""
    weights = weights.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(weights), axis=axes, keepdims=True), 1e-30) / 127
    return jnp.round(weights / scale).astype(jnp.int8), jnp.squeeze(scale, axes)


def kept_dtype(dtype: str) -> jnp.dtype:
    """In which numbers of this dtype are kept where they are sliced."""
    return jnp.dtype(jnp.uint16) if dtype == "bfloat16" and platform() == "cpu" else jnp.dtype(dtype)


def to_bits(x: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Numbers as they are kept."""
    x = x.astype(dtype)
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if kept_dtype(x.dtype.name) == jnp.uint16 else x


def from_bits(x: jax.Array) -> jax.Array:
    """What was kept: bits as float32, anything else as it is."""
    if x.dtype != jnp.uint16:
        return x
    return jax.lax.bitcast_convert_type(x.astype(jnp.uint32) << jnp.uint32(16), jnp.float32)


def is_packed(weights: jax.Array) -> bool:
    """Whether these are bits or integers, which `product` and `rows_of` take."""
    return not jnp.issubdtype(weights.dtype, jnp.floating)


def rows_of(table_VD: jax.Array, scale_V: jax.Array | None, index_BT: jax.Array, dtype: str) -> jax.Array:
    """Rows [B,T,D] of a packed table."""
    rows_BTD = from_bits(table_VD[index_BT])
    if scale_V is not None:
        rows_BTD = rows_BTD.astype(jnp.float32) * scale_V[index_BT][..., None]
    return rows_BTD.astype(dtype)


def product(x: jax.Array, weights: jax.Array, scale: jax.Array | None, inputs: tuple[int, ...]) -> jax.Array:
    """The product [..., *outputs], float32, of x [..., *inputs] and packed weights, whose axes `inputs` come together.

    Args:
      scale: of int8, [*outputs].
      inputs: the first axes of the weights, or the last.
    """
    count = len(inputs)
    lead, across = x.shape[: x.ndim - count], math.prod(weights.shape[axis] for axis in inputs)
    outputs = tuple(size for axis, size in enumerate(weights.shape) if axis not in inputs)
    axis = 0 if 0 in inputs else 1  # Of inputs, as a matrix.
    matrix = weights.reshape((across, math.prod(outputs)) if axis == 0 else (math.prod(outputs), across))
    computed = jnp.float32 if platform() == "cpu" else x.dtype
    x_MI = x.reshape(math.prod(lead), across).astype(computed)

    def multiply(part: jax.Array) -> jax.Array:
        part = from_bits(part).astype(computed)
        return jax.lax.dot_general(x_MI, part, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32)

    if platform() == "cpu" and matrix.size > LARGE:
        y_MO = _by_pieces(multiply, matrix, 1 - axis, len(x_MI))
    else:
        y_MO = multiply(matrix)
    if scale is not None:
        y_MO = y_MO * scale.reshape(1, -1)
    return y_MO.reshape(*lead, *outputs)


def _by_pieces(multiply: Any, matrix: jax.Array, axis: int, rows: int) -> jax.Array:
    """The product, PIECE outputs at a time; the last piece overlaps the one before it."""
    O = matrix.shape[axis]  # noqa: E741
    piece = min(PIECE, O)

    def one(number: jax.Array, y_MO: jax.Array) -> jax.Array:
        start = jnp.minimum(number * piece, O - piece)
        part = jax.lax.dynamic_slice_in_dim(matrix, start, piece, axis)
        return jax.lax.dynamic_update_slice_in_dim(y_MO, multiply(part), start, 1)

    return jax.lax.fori_loop(0, -(-O // piece), one, jnp.zeros((rows, O), jnp.float32))
