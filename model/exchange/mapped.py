"""Networks of which no library knows: arrays by name, and a key map that says what they are of ours.

A key map is a JSON file:

  {"settings": {"model.network": "encoder_decoder", "model.width": 256, ...},
   "linear": [["decoder.layers.{layer}.self_attention.fc_q", "NH,D", "layers/attention/query:DNH"], ...],
   "norm":   [["decoder.layers.{layer}.ff_layer_norm", "layers/feed_forward_norm"], ...],
   "tensor": [["decoder.pos_embedding.weight", "P,D", "position/embedding:PD"], ...]}

`settings` are ours. The rest are lines as `tables.py` explains them: the name there, its axes, and our path and axes. A
`linear` stands for its `.weight` and `.bias`, a `norm` for its `.weight` and, if it has one, its `.bias`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from configs import schema
from configs.check import check_network
from configs.convert import override
from configs.schema import Config, ConfigError
from model.exchange import stream
from model.exchange.families import Family
from model.exchange.folder import read_json
from model.exchange.source import ExchangeError
from model.exchange.tables import Table, linear, norm, tensor
from model.sharding import make_mesh

LINES = {"linear": linear, "norm": norm, "tensor": lambda *line: (tensor(*line),)}


def read_mapped(arrays: Mapping[str, np.ndarray], key_map: str | Path, mesh: Mesh | None = None) -> tuple[Config, Any]:
    """The network in `arrays`, and its parameters on the devices of `mesh` (by default, all).

    Args:
      arrays: by the names that the key map has; float32, float16 or bfloat16. PyTorch's are
        `{name: tensor.numpy() for name, tensor in torch.load(file, weights_only=True).items()}`.
      key_map: the path of a key map.
      mesh: where the parameters go.

    Raises:
      ExchangeError: the key map cannot be read, or an array is missing, too many or of another shape.
    """
    described = read_json(Path(key_map))
    if unknown := set(described) - {"settings", *LINES}:
        raise ExchangeError(f"{key_map} has {min(unknown)!r}; a key map has settings, {', '.join(LINES)}.")
    try:
        config = check_network(override(Config(), described.get("settings", {})))
    except ConfigError as error:
        raise ExchangeError(f"{key_map}: {error}") from error
    family = Family(Path(key_map).stem, "", (), {}, _table(described, key_map))
    return config, stream.load(family, config, _Arrays(arrays), mesh or make_mesh(schema.Mesh()))


def _table(described: Mapping[str, Any], key_map: str | Path) -> Table:
    lines: list[Any] = []
    for kind, make in LINES.items():
        for line in described.get(kind, []):
            try:
                lines += make(*line)
            except (TypeError, ValueError, IndexError) as error:
                raise ExchangeError(f"{key_map}: {line} is no line of {kind}: {error}.") from error
    return tuple(lines)


class _Arrays:
    """Arrays in memory as a source of tensors."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = arrays

    def names(self) -> Iterable[str]:
        return self._arrays

    def shape(self, name: str) -> tuple[int, ...]:
        return self._arrays[name].shape

    def read(self, name: str) -> np.ndarray:
        return self._arrays[name]
