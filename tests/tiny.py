"""A small network for tests, with random weights everywhere: biases, scales and sinks too, which start as 0 or 1."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from configs.convert import override
from configs.schema import Config, Data, Model, Tokenizer
from model.sharding import parameter_shapes

VOCABULARY = 32


def tiny(**model: Any) -> Config:
    """Two layers of width 16, as a scan, which compiles faster; with the given settings of `model`."""
    base = Config(
        model=Model(num_layers=2, width=16, num_heads=4, num_kv_heads=2, layers="scan"),
        tokenizer=Tokenizer(source="bytes", vocab_size=VOCABULARY),
        data=Data(length=16),
    )
    return override(base, {f"model.{name}": value for name, value in model.items()})


def random_params(module: Any, seed: int = 0) -> Any:
    """Parameters as large as those of a trained network, so that a wrong term shows; without compiling `init`."""
    random = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> jax.Array:
        value = random.normal(size=shape.shape)
        if path[-1].key == "scale":
            value = 1 + 0.3 * value
        elif path[-1].key in ("kernel", "bias"):
            value = 0.4 * value
        return jax.device_put(value.astype(shape.dtype))

    return jax.tree_util.tree_map_with_path(draw, parameter_shapes(module))


def random_tokens(*shape: int, seed: int = 0) -> np.ndarray:
    """Token ids, int32."""
    return np.random.default_rng(seed).integers(0, VOCABULARY, shape, np.int32)


def with_other_last_bits(params: Any, seed: int) -> Any:
    """Each number goes to one of its two neighbours: what that changes, another processor's rounding may change."""
    random = np.random.default_rng(seed)

    def change(x: jax.Array) -> np.ndarray:
        towards = np.where(random.random(x.shape) < 0.5, -np.inf, np.inf).astype(np.float32)
        return np.nextafter(np.asarray(x), towards)

    return jax.tree.map(change, params)
