"""Layers whose parameters are arrays of their own, for writing on a CPU.

Stacked, the weights of each layer would be copied out of the stack for every token, which takes as long as to multiply
with them: in the shape of SmolLM2-135M (float32) a token took 79 ms of CPU time, and takes 44.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from model.kept import RING
from model.lens.places import EDITS, INTERMEDIATES, within

if TYPE_CHECKING:
    from model.attention import Places


def set_apart(params: Any) -> Any:
    """Parameters with those of each layer by themselves: in `layers`, {"0": ..., "1": ...} for arrays [L,...]."""
    if not isinstance(params, dict):
        return params
    return {name: _by_layer(tree) if name == "layers" else set_apart(tree) for name, tree in params.items()}


def _by_layer(stacked: Any) -> dict[str, Any]:
    (L,) = {leaf.shape[0] for leaf in jax.tree.leaves(stacked)}
    return {str(number): jax.tree.map(lambda x_L: x_L[number], stacked) for number in range(L)}  # noqa: B023


def are_apart(params: Any) -> bool:
    """Whether the layers are given by themselves."""
    return "0" in params.get("layers", {})


class Apart(nn.Module):
    """The stack of layers, or the same layers one after the other where they are given apart.

    Apart, layers can read and extend a cache, be recorded and edited, and nothing more.
    """

    stack: Any  # The layers, as a scan.
    block: Any  # One of them, unbound.
    num_layers: int

    def setup(self) -> None:
        """Have the parameters where the stack has them."""
        nn.share_scope(self, self.stack)

    def __call__(
        self, x_BTD: jax.Array, layers_L: Any, places: Places, memory_BSD: jax.Array | None
    ) -> tuple[jax.Array, None]:
        """The residual stream [B,T,D] after the last layer, in the form that the stack returns."""
        given = self.variables
        if "0" not in given.get("params", {}):
            return self.stack(x_BTD, layers_L, places, memory_BSD)
        if others := set(given) - {"params", "cache", EDITS, INTERMEDIATES}:
            raise ValueError(
                f"Layers that are apart have no {', '.join(sorted(others))}: give their parameters stacked."
            )
        mutable = [name for name in ("cache", INTERMEDIATES) if self.is_mutable_collection(name)]
        cache, edits, recorded = given.get("cache", {}), given.get(EDITS, {}), []
        numbers = _numbers_in_cache(layers_L, cache)
        for number in range(self.num_layers):
            layer = jax.tree.map(lambda x_L: x_L[number], layers_L)  # noqa: B023
            layer = dataclasses.replace(layer, number=numbers[number])
            variables = {"params": given["params"][str(number)], "cache": cache}
            if edits:
                variables[EDITS] = jax.tree.map(lambda x_L: x_L[number], edits)  # noqa: B023
            with within(self.path):
                (x_BTD, _), after = self.block.apply(variables, x_BTD, layer, places, memory_BSD, mutable=mutable)
            cache = after.get("cache", cache)
            recorded.append(after.get(INTERMEDIATES, {}))
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *recorded)
        for collection, values in (("cache", cache), (INTERMEDIATES, stacked)):
            for name, value in values.items() if collection in mutable else ():
                self.put_variable(collection, name, value)
        return x_BTD, None


def _numbers_in_cache(layers_L: Any, cache: Any) -> np.ndarray:
    """Where each layer finds what it keeps, [L] int32: among those of its kind, if the cache tells them apart."""
    kept = cache.get("attention", {})
    if "key" not in kept or f"{RING}key" not in kept:
        return layers_L.number
    is_local_L = layers_L.window > 0
    return np.where(is_local_L, np.cumsum(is_local_L), np.cumsum(~is_local_L)).astype(np.int32) - 1
