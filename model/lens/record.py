"""Run a network and keep what it computed inside."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from configs.check import check_length
from model.lens.places import ALL, INTERMEDIATES, Asked, Edit, Part, asking, check_recorded, collection
from model.source import Source
from model.transformer import head_logits


def record(
    module: Any,
    params: Any,
    tokens_BT: jax.Array,
    what: Sequence[str] = ("layers/attention/weights",),
    source: Source | None = None,
    edits: Mapping[str, Edit] | None = None,
    cache: Any = None,
    positions_BT: jax.Array | None = None,
    part: Part = ALL,
) -> dict[str, Any]:
    """What the network computes at the places `what`, plus `logits` [B,T,V].

    `layers/attention/weights` and `.../scores` are [L,B,N,T,S] float32; `.../query` is [L,B,T,N,H], `.../key` and
    `.../value` [L,B,T,K,H], as they meet; `.../heads`, what each head read, is [L,B,T,N,H], and `.../out_per_head`,
    what it writes into the residual stream, [L,B,T,N,D]. `layers/residual/{before,middle,after}` are [L,B,T,D], what
    is added in between, `layers/added/{attention,feed_forward}`, as well; `layers/feed_forward/hidden` is [L,B,T,F];
    `embedded` and `final` are [B,T,D]. A network that translates has `layers/cross_attention/...` as well, and those of
    its encoder under `encoder/`; it needs a `source`. An LSTM has its gates. With `edits`, by place, the network goes
    on with other values there. `part` says how much is kept of all this.

    With a `cache` (`generate.cache.empty_cache`), the tokens follow those that it has, at `positions_BT` (int32, by
    default from 0), and what it is afterwards is under `cache`. Weights over the text then have its slots as S.

    Raises:
      KeyError: a place that this network does not have, or that cannot be changed; the message lists those it has.
      ConfigError: a text longer than a learned position table.
    """
    check_length(module.config, max(tokens_BT.shape[1], 0 if source is None else source.tokens_BS.shape[1]))
    variables = {"params": params} | collection(module, edits or {}) | ({} if cache is None else {"cache": cache})
    check_recorded(module, what)
    T, L = tokens_BT.shape[1], module.config.model.num_layers
    part = dataclasses.replace(
        part,
        positions=None if part.positions is None else tuple(at % T for at in part.positions),
        layers=None if part.layers is None else tuple(layer % L for layer in part.layers),
    )
    return _record(module, variables, tokens_BT, positions_BT, Asked(frozenset(what), part), source)


@partial(jax.jit, static_argnums=(0, 4))
def _record(
    module: Any,
    variables: dict[str, Any],
    tokens_BT: jax.Array,
    positions_BT: jax.Array | None,
    asked: Asked,
    source: Source | None,
) -> dict[str, Any]:
    kept = ["cache"] if "cache" in variables else []
    part, head = asked.part, asked.part.positions is None

    with asking(asked):
        logits_BTV, changed = module.apply(
            variables, tokens_BT, positions_BT, source=source, head=head, mutable=[INTERMEDIATES, *kept]
        )
    found = found_in(changed)
    if part.layers is not None:
        found |= {
            name: jnp.stack([value[layer] for layer in part.layers])
            for name, value in found.items()
            if name.startswith("layers/")
        }
    if part.positions is not None:  # Logits of all tokens can be larger than all that the network computes.
        logits_BTV = head_logits(module.config, variables["params"], logits_BTV[:, jnp.array(part.positions)])
    return found | {name: changed[name] for name in kept} | ({"logits": logits_BTV} if part.logits else {})


def found_in(variables: Mapping[str, Any]) -> dict[str, Any]:
    """What was recorded, by place."""
    return flatten_dict(variables.get(INTERMEDIATES, {}), sep="/")
