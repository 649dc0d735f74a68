"""Run a network and keep what it computed inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from configs.convert import check_length
from model.lens.places import INTERMEDIATES, Asked, Edit, asking, collection
from model.source import Source


def record(
    module: Any,
    params: Any,
    tokens_BT: jax.Array,
    what: Sequence[str] = ("layers/attention/weights",),
    source: Source | None = None,
    edits: Mapping[str, Edit] | None = None,
    cache: Any = None,
    positions_BT: jax.Array | None = None,
    positions: Sequence[int] | None = None,
) -> dict[str, Any]:
    """What the network computes at the places `what`, plus `logits` [B,T,V].

    `layers/attention/weights` and `.../scores` are [L,B,N,T,S] float32, `layers/attention/heads`, what each head read,
    is [L,B,T,N,H], and `.../out_per_head`, what it writes into the residual stream, [L,B,T,N,D];
    `layers/residual/{before,middle,after}` are [L,B,T,D], what is added to them `layers/added/{attention,feed_forward}`
    as well; `final` is [B,T,D]. A network that translates has `layers/cross_attention/...` as well, and those of its
    encoder under `encoder/`; it needs a `source`. With `edits`, by place, the network goes on with other values there.
    With `positions`, only of these tokens of the text is anything kept: P of them in place of T.

    With a `cache` (`generate.cache.empty_cache`), the tokens follow those that it has, at `positions_BT` (int32, by
    default from 0), and what it is afterwards is under `cache`. Weights over the text then have its slots as S.

    Raises:
      KeyError: a place that this network does not have, or that cannot be changed; the message lists those it has.
      ConfigError: a text longer than a learned position table.
    """
    check_length(module.config, max(tokens_BT.shape[1], 0 if source is None else source.tokens_BS.shape[1]))
    variables = {"params": params} | collection(edits or {}) | ({} if cache is None else {"cache": cache})
    places = None if positions is None else tuple(at % tokens_BT.shape[1] for at in positions)
    return _record(module, variables, tokens_BT, positions_BT, Asked(frozenset(what), places), source)


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

    def apply() -> tuple[jax.Array, dict[str, Any]]:
        logits_BTV, changed = module.apply(
            variables, tokens_BT, positions_BT, source=source, mutable=[INTERMEDIATES, *kept]
        )
        places: dict[str, Any] = flatten_dict(changed.get(INTERMEDIATES, {}), sep="/")
        return logits_BTV, places | {name: changed[name] for name in kept}

    with asking(asked):
        logits_BTV, found = apply()
    unknown = sorted(asked.what - found.keys())
    if unknown:
        places = sorted(jax.eval_shape(apply)[1].keys() - set(kept))
        raise KeyError(f"There is no place {', '.join(unknown)} in this network; it has {', '.join(places)}.")
    if asked.positions is not None:
        logits_BTV = logits_BTV[:, jnp.array(asked.positions)]
    return found | {"logits": logits_BTV}
