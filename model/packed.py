"""Weights and caches that take less memory than what is computed with: bfloat16, and integers of 8 bits with a scale.

Writing a token reads every weight once, so its time is that of reading memory: half the bytes are half the time, where
they are widened on the way. 8 bits are symmetric, with a scale for each output, which multiplies the sum (Dettmers et
al. 2022, "LLM.int8()", section 2.1, of the weights alone); activations stay as they are.

What XLA does on a CPU decides the form. A vector times a matrix whose inputs are its last axis reads and widens each
number once, within the loop that adds up; any other product widens the whole matrix first, unless the processor
multiplies bfloat16 itself. And bfloat16 that is sliced is widened whole before: so layers are set apart
(`model.apart`), and what is kept of texts are bits, uint16, that are made float32 here, slice by slice.

Shapes: M vectors, I inputs, O outputs, V vocabulary, D model width.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from configs.derived import is_recurrent
from configs.schema import ConfigError
from model.apart import set_apart
from model.kept import from_bits
from model.sharding import platform

KINDS = ("", "bfloat16", "int8")
MATRIX = "packed"  # The variable of a linear map that stands for its kernel, [O,I].
SCALE = "packed_scale"  # The variable beside it, or beside a table, [O].
LARGE = 1 << 22  # A matrix with more numbers that has to be widened first is so piece by piece.
PIECE = 2048  # Outputs of such a piece: what is widened at once stays in a cache.
LONGEST = 4096  # Inputs that XLA adds up and widens in one loop.


def pack(module: Any, params: Any, kind: str = "") -> Any:
    """Parameters for reading only, in the form that writes fastest, and in fewer bytes if asked.

    Linear maps and a table of tokens' vectors are packed; on a CPU, each layer of a Transformer has arrays of its own.

    Args:
      kind: bfloat16, int8, or "" for as they are.

    Raises:
      ConfigError: there is no such kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"--weights={kind}: it must be one of bfloat16 and int8, or nothing.")
    maps, on_cpu = _maps(module, params), platform() == "cpu"

    def walk(tree: Any, path: tuple[str, ...]) -> Any:
        packed: dict[str, Any] = {}
        for name, value in tree.items():
            if isinstance(value, dict):
                packed[name] = walk(value, (*path, name))
            elif (*path, name) not in maps:
                packed[name] = value
            else:
                packed |= pack_one(name, value, maps[*path, name])
        return packed

    def pack_one(name: str, value: jax.Array, sizes: tuple[Any, Any]) -> dict[str, jax.Array]:
        dtype = value.dtype if kind == "int8" else jnp.dtype(kind or module.config.model.dtype)
        dtype = min(value.dtype, dtype, key=lambda dtype: dtype.itemsize)
        if kind != "int8" and not (on_cpu and dtype == jnp.bfloat16):
            return {name: value.astype(dtype)}
        if name == "kernel":
            stack = value.shape[: value.ndim - len(sizes[0] + sizes[1])]
            value = value.reshape(*stack, *map(math.prod, sizes)).swapaxes(-1, -2)
        if kind != "int8":
            return {MATRIX: value.astype(dtype)}
        weights = value.astype(jnp.float32)
        scale = jnp.maximum(jnp.max(jnp.abs(weights), axis=-1), 1e-30) / 127
        return {MATRIX: jnp.round(weights / scale[..., None]).astype(jnp.int8), SCALE: scale}

    def run(params: Any) -> Any:
        packed = walk(params, ())
        return set_apart(packed) if on_cpu and not is_recurrent(module.config) else packed

    return jax.jit(run)(params)  # Without donation: the caller may go on to use the parameters.


def _maps(module: nn.Module, params: Any) -> dict[tuple[str, ...], tuple[Any, Any]]:
    """Paths of all parameters that can be packed, and the sizes of their inputs and of their outputs."""
    from model.layers import Linear
    from model.source import Source
    from model.transformer import Embedding

    found: dict[tuple[str, ...], tuple[Any, Any]] = {}

    def look(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        layer = context.module
        if isinstance(layer, Linear):
            found[(*layer.path, "kernel")] = layer.inputs, layer.outputs
        elif isinstance(layer, Embedding) and layer.axis == "vocabulary":
            found[(*layer.path, "embedding")] = (), ()
        return call(*args, **kwargs)

    def run(params: Any) -> Any:
        tokens_BT = jnp.zeros((1, 1), jnp.int32)
        source = Source.of(tokens_BT) if hasattr(module, "encode") else None
        with nn.intercept_methods(look):
            return module.apply({"params": params}, tokens_BT, source=source)

    jax.eval_shape(run, params)
    return found


def rows_of(table_VD: jax.Array, scale_V: jax.Array | None, index_BT: jax.Array, dtype: str) -> jax.Array:
    """Rows [B,T,D] of a packed table."""
    table_VD, index_BT = _here(table_VD, index_BT)
    if table_VD.dtype == jnp.bfloat16:
        table_VD = jax.lax.bitcast_convert_type(table_VD, jnp.uint16)
    rows_BTD = from_bits(table_VD[index_BT])
    if scale_V is not None:
        rows_BTD = rows_BTD.astype(jnp.float32) * scale_V[index_BT][..., None]
    return rows_BTD.astype(dtype)


def product(x: jax.Array, matrix_OI: jax.Array, scale_O: jax.Array | None) -> jax.Array:
    """The product [...,O], float32, of x [...,I] and a packed matrix."""
    lead, (O, I) = x.shape[:-1], matrix_OI.shape  # noqa: E741
    matrix_OI, x = _here(matrix_OI, x)
    x_MI = x.reshape(math.prod(lead), I)
    if platform() != "cpu":
        y_MO = _multiply(x_MI, matrix_OI.astype(x.dtype))
    elif len(x_MI) == 1:
        parts = [slice(start, start + LONGEST) for start in range(0, I, LONGEST)]
        # As the product with a transposed matrix: in no other form does XLA take the widening into the loop.
        y_MO: Any = sum(x_MI[:, part].astype(jnp.float32) @ matrix_OI[:, part].astype(jnp.float32).T for part in parts)
    elif x.dtype == matrix_OI.dtype:
        y_MO = _multiply(x_MI, matrix_OI)
    elif matrix_OI.size > LARGE:
        y_MO = _by_pieces(x_MI.astype(jnp.float32), matrix_OI)
    else:
        y_MO = _multiply(x_MI.astype(jnp.float32), matrix_OI.astype(jnp.float32))
    y_MO = y_MO if scale_O is None else y_MO * scale_O[None]
    return y_MO.reshape(*lead, O)


def _here(weights: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both as they are, but what is made of the weights cannot be made before `x` is there.

    XLA would widen all weights once, in front of the loop over tokens: that takes the memory that packing saves.
    """
    return jax.lax.optimization_barrier((weights, x))


def _multiply(x_MI: jax.Array, matrix_OI: jax.Array) -> jax.Array:
    return jax.lax.dot_general(x_MI, matrix_OI, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def _by_pieces(x_MI: jax.Array, matrix_OI: jax.Array) -> jax.Array:
    """The product, PIECE outputs at a time; the last piece overlaps the one before it."""
    O = len(matrix_OI)  # noqa: E741
    piece = min(PIECE, O)

    def one(number: jax.Array, y_MO: jax.Array) -> jax.Array:
        start = jnp.minimum(number * piece, O - piece)
        part = jax.lax.dynamic_slice_in_dim(matrix_OI, start, piece, 0)
        return jax.lax.dynamic_update_slice_in_dim(y_MO, _multiply(x_MI, part.astype(jnp.float32)), start, 1)

    return jax.lax.fori_loop(0, -(-O // piece), one, jnp.zeros((len(x_MI), O), jnp.float32))
