"""The rest of a network: its layers from a given one on, so that an edit in it costs no more than what it changes.

Shapes: L layers, B batch, T length, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from configs.derived import has_final_norm, layer_windows, translates
from configs.schema import Config
from model.apart import are_apart
from model.layers import Norm
from model.lens.places import EDITS, Edit
from model.source import Source
from model.transformer import Block, Layer, find_places, or_default


class Rest(nn.Module):
    """The layers of a Transformer from a given one on, and its final norm; it has the parameters of the whole."""

    config: Config

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        first: jax.Array,
        edits: dict[str, Any],
        segments_BT: jax.Array,
        memory_BSD: jax.Array | None = None,
        source_segments_BS: jax.Array | None = None,
    ) -> jax.Array:
        """What the output layer makes logits of, [B,T,D].

        Args:
          x_BTD: the residual stream that enters the layer `first` (int32 scalar, which need not be known to compile).
          edits: the collection `edits` of that layer, as it stands under `layers`, without the axis of layers.
          memory_BSD: the encoded source.
        """
        if are_apart(self.variables["params"]):
            raise ValueError("The rest of a network is computed with stacked parameters, and these layers are apart.")
        config, L = self.config, self.config.model.num_layers
        positions_BT, rows_B = or_default(segments_BT, None, None)
        places = find_places(
            config, positions_BT, segments_BT, rows_B,
            causal=config.model.network != "encoder", source_segments_BS=source_segments_BS,
        )  # fmt: skip
        block = Block(config, True, translates(config), parent=None)
        params, windows_L = self.variables["params"]["layers"], jnp.array(layer_windows(config, L), jnp.int32)

        def layer(number: jax.Array, x_BTD: jax.Array) -> jax.Array:
            here = number == first
            of_layer = jax.tree.map(lambda x_L: x_L[number], params)
            changed = jax.tree.map(
                lambda edit: Edit(jnp.where(here, edit.keep, 1), jnp.where(here, edit.add, 0)),
                edits, is_leaf=lambda edit: isinstance(edit, Edit),
            )  # fmt: skip
            variables = {"params": of_layer} | ({EDITS: changed} if edits else {})
            out: Any = block.apply(variables, x_BTD, Layer(number, windows_L[number]), places, memory_BSD)
            return out[0]

        x_BTD = jax.lax.fori_loop(first, L, layer, x_BTD)
        return Norm(config, config.model.norm, name="final_norm")(x_BTD) if has_final_norm(config) else x_BTD


OnLayer = Callable[[int, int], object]  # To be told how many layers are done, of how many.


def each_layer(run: Callable[[jax.Array], jax.Array], layers: int, on_layer: OnLayer | None) -> jax.Array:
    """What a compiled function finds for layers (int32 numbers, [X]), for all of them, [L,...]: in one call.

    With `on_layer` in one for each, after which it is told so.
    """
    if on_layer is None:
        return run(jnp.arange(layers))
    found = []
    for layer in range(layers):
        found.append(jax.block_until_ready(run(jnp.array([layer]))))
        on_layer(layer + 1, layers)
    return jnp.concatenate(found)


def encoded(module: Any, params: Any, source: Source | None) -> tuple[jax.Array | None, jax.Array | None]:
    """The encoded source [B,S,D] and its segments, for a network that translates."""
    if source is None:
        return None, None
    return module.apply({"params": params}, source, method="encode"), source.segments_BS
