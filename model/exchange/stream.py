"""Tensors from files to devices, one at a time and each device its own share; and back.

What a tensor of a checkpoint holds of ours is a view of it (a slice, split axes, another order), so reading copies from
the view, and writing copies into it.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from configs.derived import encoder_layers, feed_forward_width, head_width, max_length, num_kv_heads
from configs.schema import Config
from model import build
from model.exchange.families import Family, canonical_name
from model.exchange.folder import Written
from model.exchange.source import ExchangeError, TensorSource
from model.exchange.tables import Tensor
from model.sharding import param_shardings, parameter_shapes

# Of a tensor, a 16th is copied at once, within these limits.
LEAST_BYTES, MOST_BYTES = 2**20, 16 * 2**20

Bounds = tuple[tuple[int, int], ...]  # where a share begins and ends, along each axis
Shapes = dict[str, jax.ShapeDtypeStruct]  # of all parameters, by path


@dataclasses.dataclass(frozen=True)
class Part:
    """What one tensor of a checkpoint holds of one of our parameters."""

    path: str
    index: tuple[int, ...]  # which layer (and expert) of the parameter
    theirs: str  # axes, as in the table: `NH+KH+KH,D`
    number: int  # which of the parts along the axis with `+`
    ours: str  # axes
    sizes: Mapping[str, int]

    def view(self, tensor: np.ndarray) -> np.ndarray:
        """This part of a tensor in our shape, without copying."""
        letters: list[str] = []
        cut: list[slice] = []
        for axis in self.theirs.split(","):
            pieces = axis.split("+")
            piece = pieces[self.number if len(pieces) > 1 else 0]
            start = sum(_length(other, self.sizes) for other in pieces[: self.number]) if len(pieces) > 1 else 0
            cut.append(slice(start, start + _length(piece, self.sizes)))
            letters.extend(piece)
        view = tensor[tuple(cut)].reshape([_length(letter, self.sizes) for letter in letters])
        keep = [place for place, letter in enumerate(letters) if letter != "1"]
        view = view.reshape([view.shape[place] for place in keep])
        order = "".join(letter for letter in letters if letter != "1")
        return view.transpose([order.index(letter) for letter in self.ours])


def _length(axis: str, sizes: Mapping[str, int]) -> int:
    return math.prod(1 if letter == "1" else sizes[letter] for letter in axis)


def _shape(axes: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sum(_length(piece, sizes) for piece in axis.split("+")) for axis in axes.split(","))


@dataclasses.dataclass(frozen=True)
class Planned:
    """A tensor that the checkpoint of a network has."""

    shape: tuple[int, ...]
    parts: tuple[Part, ...]


def plan(family: Family, config: Config, shapes: Shapes) -> dict[str, Planned]:
    """Every tensor of a network in a checkpoint of its family, by name, and what it holds.

    Raises:
      ExchangeError: the network has a parameter that the family has no tensor for.
    """
    N, K, H = config.model.num_heads, num_kv_heads(config), head_width(config)
    sizes = {
        "V": config.tokenizer.vocab_size, "P": max_length(config), "D": config.model.width, "N": N, "K": K, "H": H,
        "M": N * H, "J": K * H, "F": feed_forward_width(config), "E": config.model.num_experts,
        "R": config.model.relative_buckets,
    }  # fmt: skip
    planned: dict[str, Planned] = {}
    for line in family.tensors(config):
        if not all(path in shapes for path, _ in line.parts):
            continue
        for name, index in _names(line, config):
            planned[name] = Planned(
                _shape(line.axes, sizes),
                tuple(Part(path, index, line.axes, k, ours, sizes) for k, (path, ours) in enumerate(line.parts)),
            )
    held = {part.path for tensor in planned.values() for part in tensor.parts}
    if homeless := sorted(shapes.keys() - held):
        raise ExchangeError(f"A {family.model_type} checkpoint has no tensor for the parameter {homeless[0]}.")
    return planned


def _names(line: Tensor, config: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of all layers (and experts), with their numbers."""
    encodes = line.parts[0][0].startswith("encoder/")
    counts = {
        "layer": encoder_layers(config) if encodes else config.model.num_layers,
        "expert": config.model.num_experts,
    }
    used = [name for name in counts if f"{{{name}}}" in line.name]
    for index in itertools.product(*(range(counts[name]) for name in used)):
        yield line.name.format(**dict(zip(used, index, strict=True))), index


def check_names(family: Family, source: TensorSource, planned: Mapping[str, Planned]) -> dict[str, str]:
    """The name in the files of each planned tensor.

    Raises:
      ExchangeError: a tensor is missing, has another shape, is one too many, or should be a copy of another and is not.
    """
    found = {canonical_name(family, name): name for name in source.names()}
    for name, tensor in planned.items():
        if name not in found:
            raise ExchangeError(f"The tensor {name} is missing: a {family.model_type} network of this config needs it.")
        shape = tuple(source.shape(found[name]))
        if shape != tensor.shape:
            raise ExchangeError(
                f"The tensor {found[name]} has the shape {shape}; by the config.json it should be {tensor.shape}."
            )
    for name, theirs in found.items():
        if name in planned or re.fullmatch(family.ignored, theirs) or re.fullmatch(family.ignored, name):
            continue
        original = family.copies.get(name)
        if original is None:
            raise ExchangeError(f"The tensor {theirs} is one too many: a {family.model_type} network has none like it.")
        if _digest(source, theirs) != _digest(source, found[original]):
            raise ExchangeError(
                f"The tensor {theirs} differs from {found[original]}, which by the config.json is used for both."
            )
    return {name: found[name] for name in planned}


def _digest(source: TensorSource, name: str) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(source.read(name)).view(np.uint8).data).digest()


def load(family: Family, config: Config, source: TensorSource, mesh: Mesh) -> Any:
    """Parameters of `config`'s network from a checkpoint, laid out over `mesh`, in `model.param_dtype`.

    At any time one tensor is in host memory, and a small block of it once more.

    Raises:
      ExchangeError: as `plan` and `check_names`.
    """
    module = build(config)
    shapes = _flat(parameter_shapes(module))
    planned = plan(family, config, shapes)
    names = check_names(family, source, planned)
    places = _flat(param_shardings(module, mesh))
    spread = {path: _Spread(leaf.shape, leaf.dtype, places[path]) for path, leaf in shapes.items()}
    for name, tensor in planned.items():
        values = source.read(names[name])
        for part in tensor.parts:
            offset = family.norm_offset if part.path.endswith("norm/scale") else 0.0
            spread[part.path].write(part.index, part.view(values), offset)
        del values
    return unflatten_dict({path: array.finish() for path, array in spread.items()}, sep="/")


def _flat(tree: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", flatten_dict(tree, sep="/"))


class _Spread:
    """A parameter in the making: each distinct share of it on a device, filled block by block."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, sharding: jax.sharding.NamedSharding) -> None:
        self._shape, self._dtype, self._sharding = shape, np.dtype(dtype), sharding
        self._devices: dict[Bounds, list[Any]] = collections.defaultdict(list)
        for device, index in sharding.addressable_devices_indices_map(shape).items():
            assert index is not None
            bounds = tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
            self._devices[bounds].append(device)
        self._shares = {
            bounds: jnp.zeros([stop - start for start, stop in bounds], dtype, device=devices[0])
            for bounds, devices in self._devices.items()
        }

    def write(self, index: tuple[int, ...], values: np.ndarray, offset: float) -> None:
        """Fill in `values + offset` at `index` of the leading axes."""
        for bounds in self._shares:
            lead, rest = bounds[: len(index)], bounds[len(index) :]
            if not all(start <= number < stop for number, (start, stop) in zip(index, lead, strict=True)):
                continue
            mine = values[tuple(slice(start, stop) for start, stop in rest)]
            place = [number - start for number, (start, _) in zip(index, lead, strict=True)]
            size = min(MOST_BYTES, max(LEAST_BYTES, values.nbytes // 16))
            rows = max(1, size // max(1, mine[:1].size * self._dtype.itemsize))
            for first in range(0, len(mine), rows):
                block = np.asarray(mine[first : first + rows], dtype=self._dtype, order="C")
                if offset:
                    block = block + np.asarray(offset, self._dtype)
                block = block.reshape((1,) * len(index) + block.shape)
                share = self._shares[bounds]
                block = jax.device_put(block, self._devices[bounds][0])
                at = np.array([*place, first, *[0] * (mine.ndim - 1)], np.int32)
                # Waiting, else blocks would pile up in memory until their turn comes.
                self._shares[bounds] = _fill(share, block, *at).block_until_ready()

    def finish(self) -> jax.Array:
        """The parameter; devices whose share is the same get copies."""
        shares: list[jax.Array] = []
        for bounds, devices in self._devices.items():
            first = self._shares.pop(bounds)
            shares += [first, *(jax.device_put(first, device) for device in devices[1:])]
        return jax.make_array_from_single_device_arrays(self._shape, self._sharding, shares)


@functools.partial(jax.jit, donate_argnums=0)
def _fill(share: jax.Array, block: jax.Array, *at: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice(share, block, at)


def unload(family: Family, config: Config, params: Any) -> dict[str, Written]:
    """The tensors of a checkpoint of `family`, each made from `params` when it is read.

    Raises:
      ExchangeError: as `plan`.
    """
    flat = _flat(params)
    shapes: Shapes = {path: jax.ShapeDtypeStruct(value.shape, value.dtype) for path, value in flat.items()}
    dtype = np.dtype(jnp.dtype(config.model.param_dtype))

    def make(tensor: Planned) -> np.ndarray:
        values = np.zeros(tensor.shape, dtype)
        for part in tensor.parts:
            offset = family.norm_offset if part.path.endswith("norm/scale") else 0.0
            ours = np.asarray(jax.device_get(flat[part.path][part.index] if part.index else flat[part.path]))
            part.view(values)[...] = ours.astype(dtype) - np.asarray(offset, dtype)
        return values

    return {
        name: Written(tensor.shape, dtype, functools.partial(make, tensor))
        for name, tensor in plan(family, config, shapes).items()
    }
