"""Where a network can be looked into, and where what it computes can be changed.

A place is one line in the network's code. Asking for the collection `intermediates` (`apply(..., mutable=...)`) turns
recording on; giving a collection `edits` changes what it names. Otherwise a place leaves no trace in the compiled
program.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from configs.derived import encoder_layers, is_recurrent, translates
from model.sharding import parameter_shapes
from model.source import Source

INTERMEDIATES = "intermediates"
EDITS = "edits"

RESIDUAL = tuple(f"layers/residual/{where}" for where in ("before", "middle", "after"))
ADDED = tuple(f"layers/added/{which}" for which in ("attention", "cross_attention", "feed_forward"))
EMBEDDED = "embedded"  # What enters the network: a vector for each token.
HEADS = ("layers/attention/heads", "layers/cross_attention/heads")
WEIGHTS = ("layers/attention/weights", "layers/cross_attention/weights")
_OF_ATTENTION = ("query", "key", "value", "scores", "weights", "heads", "out_per_head")
_GATES = ("input", "forget", "cell", "output")
# What an edit can change; in a network that translates, the encoder has the same places under `encoder/`.
EDITABLE = (
    *RESIDUAL,
    *ADDED,
    *(f"layers/{which}/{name}" for which in ("attention", "cross_attention") for name in _OF_ATTENTION),
    "layers/feed_forward/hidden",
    *(f"layers/{which}/{gate}" for which in ("lstm", "forward", "backward") for gate in _GATES),
    EMBEDDED,
    "final",
)
_MODULES = ("encoder", "layers", "attention", "cross_attention", "feed_forward", "lstm", "forward", "backward")


@dataclasses.dataclass(frozen=True)
class Part:
    """How much of what is computed at a place is kept, so that it fits into memory; by default all of it.

    Attributes:
      layers: of which layers; P of them stand in place of L.
      positions: of which tokens of the text (not of a source); they stand in place of T. The logits too.
      mean: the mean over the batch, whose axis goes.
      top: of each row of attention weights or scores the largest, which stand in place of S; which keys they are is
        recorded as `.../weights/keys`, int32. The matrix of all weights is then never made.
      logits: whether those are kept.
    """

    layers: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    mean: bool = False
    top: int = 0
    logits: bool = True


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is to be recorded; nothing else is then computed for it."""

    what: frozenset[str]
    part: Part


ALL = Part()
_WITHIN: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("within", default=())
_ASKED: contextvars.ContextVar[Asked | None] = contextvars.ContextVar("asked", default=None)


@contextlib.contextmanager
def asking(asked: Asked | None) -> Iterator[None]:
    """While a network is traced in this context, it records what is asked for alone; by default everything."""
    token = _ASKED.set(asked)
    try:
        yield
    finally:
        _ASKED.reset(token)


@contextlib.contextmanager
def within(path: tuple[str, ...]) -> Iterator[None]:
    """What is called in this context by itself has its places where it stands in the network."""
    token = _WITHIN.set(path)
    try:
        yield
    finally:
        _WITHIN.reset(token)


def asked_part() -> Part:
    """How much is to be kept of what is recorded."""
    asked = _ASKED.get()
    return ALL if asked is None else asked.part


@flax.struct.dataclass
class Edit:
    """What becomes of the value at a place: value * keep + add.

    Keep 0 replaces by `add`, keep 1 adds, and anything else scales. Both have the axes of the value, of size 1 where
    all is changed alike; at a place under `layers` that of layers is in front.
    """

    keep: jax.Array
    add: jax.Array


@functools.cache
def places_of(module: Any) -> frozenset[str]:
    """All places of a network, which can be recorded."""
    tokens_BT = jnp.zeros((1, 2), jnp.int32)
    source = Source.of(tokens_BT) if translates(module.config) else None

    def run(params: Any) -> Any:
        return module.apply({"params": params}, tokens_BT, source=source, mutable=[INTERMEDIATES])[1]

    with asking(None):
        found = jax.eval_shape(run, parameter_shapes(module))
    return frozenset(flatten_dict(found[INTERMEDIATES], sep="/"))


def check_recorded(module: Any, what: Iterable[str]) -> None:
    """Raises KeyError for a place that this network does not have; the message lists those it has."""
    unknown = sorted(set(what) - places_of(module))
    if unknown:
        places = ", ".join(sorted(places_of(module)))
        raise KeyError(f"There is no place {', '.join(unknown)} in this network; it has {places}.")


def editable(module: Any) -> list[str]:
    """The places of a network that can be changed."""
    found = {name for name in places_of(module) if name.removeprefix("encoder/") in EDITABLE}
    if is_recurrent(module.config) or module.config.model.attention in ("linear", "delta"):
        # Weights that are only worked out for whoever looks.
        found -= set(WEIGHTS)
    return sorted(found)


def collection(module: Any, edits: Mapping[str, Edit]) -> dict[str, Any]:
    """The variables to apply a network with, so that it goes on with changed values at the places `edits`.

    Raises:
      KeyError: a place that cannot be changed, or that this network does not have; the message lists those that can.
    """
    unknown = sorted(edits.keys() - set(editable(module))) if edits else []
    if unknown:
        raise KeyError(
            f"{', '.join(unknown)} cannot be edited in this network; these can: {', '.join(editable(module))}."
        )
    return (
        {EDITS: nested({place: _for_each_layer(module, place, edit) for place, edit in edits.items()})} if edits else {}
    )


def _for_each_layer(module: Any, place: str, edit: Edit) -> Edit:
    """An edit whose first axis is that of layers, where it said the same of all."""
    if "layers/" not in place:
        return edit
    layers = encoder_layers(module.config) if place.startswith("encoder/") else module.config.model.num_layers
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (layers, *x.shape[1:])), edit)


def nested(edits: Mapping[str, Edit]) -> dict[str, Any]:
    """Edits by place, as modules find their own in a collection."""
    variables: dict[str, Any] = {}
    for place, edit in edits.items():
        inner, parts = variables, place.split("/")
        while parts[0] in _MODULES:
            inner = inner.setdefault(parts.pop(0), {})
        inner["/".join(parts)] = edit
    return variables


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
    return recording(module) and (asked is None or path_of(module, name) in asked.what)


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
        at, matrix = asked_part().positions, is_matrix(name)
        if at is not None and not path_of(module, name).startswith("encoder"):
            value_P = jnp.take(value, jnp.array(at), axis=value.ndim - 2 if matrix else 1)
        else:
            value_P = value
        put(module, name, reduced(name, value_P))
    return value


def is_matrix(name: str) -> bool:
    """Whether the values at a place are [...,B,N,T,S], and not [B,T,...]."""
    return name.rsplit("/", 1)[-1] in ("weights", "scores")


def reduced(name: str, value: jax.Array) -> tuple[jax.Array, ...]:
    """What is kept of a value, in the order of the axes: a mean, the largest and their keys."""
    part, matrix = asked_part(), is_matrix(name)
    if part.mean:
        value = jnp.mean(value, axis=value.ndim - 4 if matrix else 0)
    if part.top and matrix:
        return tuple(jax.lax.top_k(value, min(part.top, value.shape[-1])))
    return (value,)


def put(module: nn.Module, name: str, kept: tuple[jax.Array, ...]) -> None:
    """Record what `reduced` left of a value."""
    for suffix, value in zip(("", "/keys"), kept, strict=False):
        module.put_variable(INTERMEDIATES, name + suffix, value)


def path_of(module: nn.Module, name: str) -> str:
    """What a place is called."""
    assert module.scope is not None
    return "/".join((*_WITHIN.get(), *module.scope.path, name))
