"""Where a network can be looked into, and where what it computes can be changed.

A place is one line in the network's code. Asking for the collection `intermediates` (`apply(..., mutable=...)`) turns
recording on; giving a collection `edits` changes what it names. Otherwise a place leaves no trace in the compiled
program.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

INTERMEDIATES = "intermediates"
EDITS = "edits"

RESIDUAL = tuple(f"layers/residual/{where}" for where in ("before", "middle", "after"))
ADDED = tuple(f"layers/added/{which}" for which in ("attention", "cross_attention", "feed_forward"))
HEADS = ("layers/attention/heads", "layers/cross_attention/heads")
OUT_PER_HEAD = ("layers/attention/out_per_head", "layers/cross_attention/out_per_head")
# What an edit can change; in a network that translates, the encoder has the same places under `encoder/`.
EDITABLE = (*RESIDUAL, *ADDED, *HEADS, *OUT_PER_HEAD)
_MODULES = ("encoder", "layers", "attention", "cross_attention")


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is to be recorded; nothing else is then computed for it."""

    what: frozenset[str]
    positions: tuple[int, ...] | None = None  # Of which tokens of the text; None is all.


_ASKED: contextvars.ContextVar[Asked | None] = contextvars.ContextVar("asked", default=None)


@contextlib.contextmanager
def asking(asked: Asked) -> Iterator[None]:
    """While a network is traced in this context, it records what is asked for alone; by default everything."""
    token = _ASKED.set(asked)
    try:
        yield
    finally:
        _ASKED.reset(token)


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


def recorded(module: nn.Module, name: str) -> bool:
    """Whether somebody asked for this place."""
    asked = _ASKED.get()
    return recording(module) and (asked is None or _path(module, name) in asked.what)


def edited(module: nn.Module, name: str) -> bool:
    """Whether somebody changes this place."""
    return module.has_variable(EDITS, name)


def looked_at(module: nn.Module, name: str) -> bool:
    """Whether somebody asked for this place, or changes it: else it need not be computed."""
    return recorded(module, name) or edited(module, name)


def tap(module: nn.Module, name: str, value: jax.Array) -> jax.Array:
    """The value to go on with: `value`, or what an edit of the module's path and `name` makes of it.

    It is recorded, if somebody asked. A caller that does not go on with it cannot be edited: see `EDITABLE`.
    """
    if edited(module, name):
        edit: Edit = module.get_variable(EDITS, name)
        value = value * edit.keep.astype(value.dtype) + edit.add.astype(value.dtype)
    if recorded(module, name):
        module.put_variable(
            INTERMEDIATES, name, _reduced(name, value, encoder=_path(module, name).startswith("encoder"))
        )
    return value


def _path(module: nn.Module, name: str) -> str:
    assert module.scope is not None
    return "/".join((*module.scope.path, name))


def _reduced(name: str, value: jax.Array, encoder: bool) -> jax.Array:
    """What is kept of a value, of which [B,T,...] is the form, and [...,T,S] that of weights and scores."""
    asked = _ASKED.get()
    if asked is None or asked.positions is None or encoder:
        return value
    axis = value.ndim - 2 if name.endswith(("weights", "scores")) else 1
    return jnp.take(value, jnp.array(asked.positions), axis=axis)
