"""Where a network can be looked into.

A place is one line in the network's code. Asking for the collection `intermediates` (`apply(..., mutable=...)`) turns
recording on; otherwise a place leaves no trace in the compiled program.
"""

from __future__ import annotations

import flax.linen as nn
import jax

INTERMEDIATES = "intermediates"


def recording(module: nn.Module) -> bool:
    """Whether somebody asked for what is computed inside."""
    return module.is_mutable_collection(INTERMEDIATES)


def tap(module: nn.Module, name: str, value: jax.Array) -> None:
    """Record `value` under the module's path and `name`, if somebody asked."""
    if recording(module):
        module.put_variable(INTERMEDIATES, name, value)
