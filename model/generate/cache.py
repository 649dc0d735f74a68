"""What is kept of the tokens read so far, so that each is computed once: keys and values, or a state."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from configs.derived import head_width, is_recurrent, layer_windows, num_kv_heads, translates
from configs.schema import Config
from model import latent, linear, lstm
from model.kept import RING, kept_dtype
from model.sharding import constrain

PIECE = 64  # Tokens of a prompt that are read at once where that matters, and of a block of the engine's prefix cache.


def ring_slots(config: Config, slots: int, apart: bool) -> int:
    """How many slots a layer with a window needs, if that is less than a slot for each token; else 0.

    The token at position p goes to slot p mod this: what lies outside the window of PIECE tokens that are read at once
    is written over. Layers that are stacked have to keep equally much, so if some have no window, only layers that are
    apart (`model.apart`) have rings.
    """
    model = config.model
    windows = set(layer_windows(config, model.num_layers)) if model.window else {0}
    keeps_tokens = model.network == "decoder" and model.attention in ("mha", "gqa", "mqa")
    if windows == {0} or not keeps_tokens or model.position == "relative" or (0 in windows and not apart):
        return 0
    ring = -(-(model.window + PIECE) // PIECE) * PIECE
    return ring if ring < slots else 0


def empty_cache(config: Config, rows: int, slots: int, source_slots: int = 0, ring: int = 0) -> Any:
    """A `cache` collection for `rows` texts of at most `slots` tokens, in the dtype of computing.

    Leaves under `layers` are [L, rows, ...]: keys and values [L, rows, slots, K, H], or what the attention kind keeps.
    A network that translates also keeps what it knows of sources of `source_slots` tokens. With a `ring` of so many
    slots (`ring_slots`) the layers that have a window keep `ring_key` and `ring_value`, and only the others the rest.
    """
    if is_recurrent(config):
        return lstm.empty_cache(config, rows, source_slots)
    kinds = {"latent": latent.cache_shapes, "linear": linear.linear_cache_shapes, "delta": linear.delta_cache_shapes}
    shapes_of = kinds.get(config.model.attention, key_value_shapes)
    L = config.model.num_layers
    local = sum(window > 0 for window in layer_windows(config, L)) if ring else 0
    layers = {"attention": _zeros(L - local, shapes_of(config, rows, slots)) if local < L else {}}
    if ring:
        rings = _zeros(local, key_value_shapes(config, rows, ring))
        layers["attention"] |= {f"{RING}{name}": value for name, value in rings.items()}
    if not translates(config):
        return {"layers": layers}
    layers["cross_attention"] = _zeros(L, key_value_shapes(config, rows, source_slots))
    return {"layers": layers, "source_segments": jnp.zeros((rows, source_slots), jnp.int32)}


def key_value_shapes(config: Config, rows: int, slots: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape (without layers) and dtype of what multi-head attention keeps."""
    shape = (rows, slots, num_kv_heads(config), head_width(config))
    return {name: (shape, config.model.dtype) for name in ("key", "value")}


def _zeros(L: int, shapes: dict[str, tuple[tuple[int, ...], str]]) -> dict[str, Any]:
    return {name: jnp.zeros((L, *shape), kept_dtype(dtype)) for name, (shape, dtype) in shapes.items()}


def cache_axes(path: tuple[Any, ...], leaf: Any) -> tuple[str, ...]:
    """Logical axes of a leaf (or its shape): rows are shared as a batch is, keys and values by heads."""
    names = ["layers", "batch"] if "layers" in _names(path) else ["batch"]
    names += ["width"] * (leaf.ndim - len(names))
    if leaf.ndim == 5 and _names(path)[-1].removeprefix(RING) in ("key", "value"):
        names[3] = "heads"
    return tuple(names)


def spread(cache: Any) -> Any:
    """Tell the compiler how a cache lies on the mesh; outside of a mesh, nothing."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: constrain(leaf, *cache_axes(path, leaf)), cache)


def row_axis(path: tuple[Any, ...]) -> int:
    """The axis of a cache's leaf that goes over the rows."""
    return 1 if "layers" in _names(path) else 0


def rows_of(cache: Any, rows_R: jax.Array) -> Any:
    """A cache made of these rows."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: jnp.take(leaf, rows_R, row_axis(path)), cache)


def row_of(cache: Any, row: jax.Array) -> Any:
    """The cache of one row (int32 scalar) alone."""

    def cut(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(leaf, row, 1, row_axis(path))

    return jax.tree_util.tree_map_with_path(cut, cache)


def with_row(cache: Any, row: jax.Array, new: Any) -> Any:
    """The cache with this row replaced; what `new` keeps of a source may be shorter than the cache's room for it."""

    def put(path: tuple[Any, ...], leaf: jax.Array, new: jax.Array) -> jax.Array:
        starts: list[Any] = [jnp.int32(0)] * leaf.ndim
        starts[row_axis(path)] = row
        return jax.lax.dynamic_update_slice(leaf, new.astype(leaf.dtype), starts)

    return jax.tree_util.tree_map_with_path(put, cache, new)


def block_of(cache: Any, row: jax.Array, start: jax.Array, length: int) -> Any:
    """What a row keeps of its `length` tokens from `start` on; of a state, which is not kept by token, all of it.

    In a ring these must be the newest tokens, and stand in one piece: PIECE tokens, from a multiple of PIECE on.
    """

    def cut(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(leaf, start % leaf.shape[2], length, 2) if by_token(path) else leaf

    return jax.tree_util.tree_map_with_path(cut, row_of(cache, row))


def with_block(cache: Any, row: jax.Array, start: jax.Array, block: Any) -> Any:
    """The cache with what `block_of` returned put in its place in this row."""

    def put(path: tuple[Any, ...], leaf: jax.Array, new: jax.Array) -> jax.Array:
        starts: list[Any] = [jnp.int32(0)] * leaf.ndim
        starts[row_axis(path)] = row
        if by_token(path):
            starts[2] = start % leaf.shape[2]
        return jax.lax.dynamic_update_slice(leaf, new, starts)

    return jax.tree_util.tree_map_with_path(put, cache, block)


def by_token(path: tuple[Any, ...]) -> bool:
    """Whether a cache's leaf keeps something of each token of the text, [L, rows, slots, ...]."""
    names = _names(path)
    return "attention" in names and names[-1].removeprefix(RING) in ("key", "value", "latent", "rotated")


def _names(path: tuple[Any, ...]) -> list[str]:
    return [entry.key for entry in path]
