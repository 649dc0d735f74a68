"""Where a network can be looked into, and where what it computes can be changed.

A place is one line in the network's code. Asking for the collection `intermediates` (`apply(..., mutable=...)`) turns
recording on; giving a collection `edits` changes what it names. Otherwise a place leaves no trace in the compiled
program.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

INTERMEDIATES = "intermediates"
EDITS = "edits"

RESIDUAL = tuple(f"layers/residual/{where}" for where in ("before", "middle", "after"))
HEADS = ("layers/attention/heads", "layers/cross_attention/heads")
# What an edit can change; in a network that translates, the encoder has the same places under `encoder/`.
EDITABLE = (*RESIDUAL, *HEADS)
_MODULES = ("encoder", "layers", "attention", "cross_attention")


@flax.struct.dataclass
class Edit:
    """What becomes of the value at a place: value * keep + add.

    Keep 0 replaces by `add`, keep 1 adds, and anything else scales. Both have the axes of the value, of size 1 where
    all is changed alike; at a place under `layers` with the layers in front.
    """

    keep: jax.Array
    add: jax.Array


def collection(edits: Mapping[str, Edit]) -> dict[str, Any]:
    """The variables to apply a network with, so that it goes on with changed values at the places `edits`.

    Raises:
      KeyError: a place that cannot be changed; the message lists those that can.
    """
    unknown = sorted(name for name in edits if name.removeprefix("encoder/") not in EDITABLE)
    if unknown:
        raise KeyError(f"{', '.join(unknown)} cannot be edited; these can: {', '.join(EDITABLE)}.")
    variables: dict[str, Any] = {}
    for place, edit in edits.items():
        inner, parts = variables, place.split("/")
        while parts[0] in _MODULES:
            inner = inner.setdefault(parts.pop(0), {})
        inner["/".join(parts)] = edit
    return {EDITS: variables} if edits else {}


def without_heads(layers: int, heads: int, off: Iterable[tuple[int, int]]) -> Edit:
    """The edit of a place in HEADS that silences the (layer, head) pairs `off`: they add nothing to what is read.

    Michel et al. 2019, "Are Sixteen Heads Really Better than One?", section 2.3.
    """
    keep_LN = jnp.ones((layers, heads), jnp.float32)
    for layer, head in off:
        keep_LN = keep_LN.at[layer, head].set(0)
    keep_L11N1 = keep_LN[:, None, None, :, None]
    return Edit(keep_L11N1, jnp.zeros_like(keep_L11N1))


def recording(module: nn.Module) -> bool:
    """Whether somebody asked for what is computed inside."""
    return module.is_mutable_collection(INTERMEDIATES)


def tap(module: nn.Module, name: str, value: jax.Array) -> jax.Array:
    """The value to go on with: `value`, or what an edit of the module's path and `name` makes of it.

    It is recorded, if somebody asked. A caller that does not go on with it cannot be edited: see `EDITABLE`.
    """
    if module.has_variable(EDITS, name):
        edit: Edit = module.get_variable(EDITS, name)
        value = value * edit.keep.astype(value.dtype) + edit.add.astype(value.dtype)
    if recording(module):
        module.put_variable(INTERMEDIATES, name, value)
    return value
