"""Where a network can be looked into, and where what it computes can be changed.

A place is one line in the network's code. Asking for the collection `intermediates` (`apply(..., mutable=...)`) turns
recording on; giving a collection `edits` changes what it names. Otherwise a place leaves no trace in the compiled
program.
"""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax

INTERMEDIATES = "intermediates"
EDITS = "edits"


@flax.struct.dataclass
class Edit:
    """What becomes of the value at a place: value * keep + add.

    Keep 0 replaces by `add`, keep 1 adds, and anything else scales. Both have the axes of the value, of size 1 where
    all is changed alike; at a place under `layers` with the layers in front.
    """

    keep: jax.Array
    add: jax.Array


def recording(module: nn.Module) -> bool:
    """Whether somebody asked for what is computed inside."""
    return module.is_mutable_collection(INTERMEDIATES)


def tap(module: nn.Module, name: str, value: jax.Array) -> jax.Array:
    """The value to go on with: `value`, or what an edit of the module's path and `name` makes of it.

    It is recorded, if somebody asked. A caller that does not go on with it cannot be edited: see `lens.patch.EDITABLE`.
    """
    if module.has_variable(EDITS, name):
        edit: Edit = module.get_variable(EDITS, name)
        value = value * edit.keep.astype(value.dtype) + edit.add.astype(value.dtype)
    if recording(module):
        module.put_variable(INTERMEDIATES, name, value)
    return value
