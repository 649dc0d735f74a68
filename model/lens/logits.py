"""What the residual stream says of the next token: read early, and taken apart into what each component wrote.

Shapes: L layers, B batch, T length, N heads, D model width, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from configs.derived import has_final_norm, is_recurrent
from configs.schema import Config, ConfigError
from model import Head, Source
from model.layers import Norm
from model.lens.places import Part, places_of
from model.lens.record import record
from model.transformer import head_logits

PLACES = {
    "embedding": "layers/residual/before",
    "heads": "layers/attention/out_per_head",
    "attention": "layers/added/attention",
    "cross_heads": "layers/cross_attention/out_per_head",
    "cross_attention": "layers/added/cross_attention",
    "mlp": "layers/added/feed_forward",
}


@partial(jax.jit, static_argnums=0)
def logit_lens(module: Any, params: Any, residual_LBTD: jax.Array) -> jax.Array:
    """The logits [L,B,T,V] float32 that the output layer would make of the residual stream at each layer.

    That of the last layer are the network's own. nostalgebraist 2020, "interpreting GPT: the logit lens".

    Args:
      residual_LBTD: the stream after each layer, as recorded at `layers/residual/after`; any number of layers.
    """
    config: Config = module.config

    def read(x_BTD: jax.Array) -> jax.Array:
        if has_final_norm(config) and not is_recurrent(config):
            x_BTD = Norm(config, config.model.norm).apply({"params": params["final_norm"]}, x_BTD)  # type: ignore[assignment]
        return head_logits(config, params, x_BTD)

    return jax.lax.map(read, residual_LBTD)


def tuned_lens(module: Any, params: Any, maps: Any, residual_LBTD: jax.Array) -> jax.Array:
    """The logits [L,B,T,V] that the lens gives behind an affine map of each layer; see `train.tuned_lens`.

    Args:
      maps: kernels [L,D,D] and biases [L,D] of what is added to the stream, under `layers/translator`.
      residual_LBTD: the stream after every layer.
    """
    translator = maps["layers"]["translator"]
    x_LBTD = residual_LBTD.astype(jnp.float32)
    added_LBTD = jnp.einsum("LBTD,LDE->LBTE", x_LBTD, translator["kernel"]) + translator["bias"][:, None, None]
    return logit_lens(module, params, (x_LBTD + added_LBTD).astype(residual_LBTD.dtype))


def direct_attribution(
    module: Any, params: Any, tokens_BT: jax.Array, at: int, ids: jax.Array, source: Source | None = None
) -> dict[str, jax.Array]:
    """What each component of the network adds to the logit of a token by itself, in nats, float32.

    The residual stream is a sum, and with the final norm's scale held at what it was, the logit is linear in it (Elhage
    et al. 2021, "A Mathematical Framework for Transformer Circuits"; Wang et al. 2022, section 3.1): `embedding` [B],
    `heads` [L,N,B], `mlp` [L,B], `attention` [L,B], what an output map's bias adds beside the heads, and `bias` [B],
    those of final norm and output layer; a network that translates has `cross_heads` and `cross_attention` as well.
    A network of attention alone has no `mlp`. All together sum to `total` [B]: the logit, or where the network caps
    logits softly, what it caps.

    It is what a component says to the output, not what would be without it: later layers read it too.

    Args:
      at: the token whose prediction is asked for; negative counts from the last.
      ids: int32, [B] a token for each text, or [B,2] two, for the difference of their logits.

    Raises:
      ConfigError: a network whose output is no sum of what its components wrote: recurrent, or normalized in between.
    """
    config: Config = module.config
    if is_recurrent(config) or config.model.norm_position == "post":
        setting = "network" if is_recurrent(config) else "norm_position"
        raise ConfigError(
            f"--model.{setting}={getattr(config.model, setting)}: its logits are no sum of what its components write, "
            "so there is nothing to attribute; knock components out instead."
        )
    places = {name: place for name, place in PLACES.items() if place in places_of(module)}
    found = record(
        module, params, tokens_BT, (*places.values(), "layers/residual/after"), source, part=Part(positions=(at,))
    )
    wrote = {name: found[place] for name, place in places.items()}
    last_BD = found["layers/residual/after"][-1, :, 0]
    return _attribute(module, params, wrote, last_BD, jnp.asarray(ids))


@partial(jax.jit, static_argnums=0)
def _attribute(
    module: Any, params: Any, wrote: dict[str, jax.Array], last_BD: jax.Array, ids: jax.Array
) -> dict[str, jax.Array]:
    config: Config = module.config
    ids_BC = ids if ids.ndim == 2 else ids[:, None]
    sign_C = jnp.array([1.0, -1.0])[: ids_BC.shape[1]]

    def score(x_BD: jax.Array) -> jax.Array:
        scores_B1V: Any = Head(config).apply({"params": params}, x_BD[:, None])
        return jnp.take_along_axis(scores_B1V[:, 0], ids_BC, axis=-1) @ sign_C

    # The output layer is linear but for a bias.
    nothing_BD = jnp.zeros_like(last_BD)
    bias_B, pull = jax.vjp(score, nothing_BD)
    direction_BD = pull(jnp.ones_like(bias_B))[0].astype(jnp.float32)
    last_BD = last_BD.astype(jnp.float32)
    if has_final_norm(config):
        norm: dict[str, jax.Array] = jax.tree.map(lambda x: x.astype(jnp.float32), params["final_norm"])
        if "bias" in norm:
            bias_B = bias_B + direction_BD @ norm["bias"]
        direction_BD = direction_BD * norm["scale"][None]
        if config.model.norm == "layer":
            direction_BD = _centered(direction_BD)
            last_BD = _centered(last_BD)
        direction_BD = direction_BD * _inverse_size(config, last_BD)

    def written(x_BD: jax.Array) -> jax.Array:
        """What vectors [...,B,D] add to the score, [...,B]."""
        return jnp.einsum("...BD,BD->...B", x_BD.astype(jnp.float32), direction_BD)

    parts = {
        "embedding": written(wrote["embedding"][0, :, 0]),
        "bias": bias_B,
    }
    if "mlp" in wrote:
        parts["mlp"] = written(wrote["mlp"][:, :, 0])
    for heads, whole in (("heads", "attention"), ("cross_heads", "cross_attention")):
        if whole in wrote:
            added_LBD = wrote[whole][:, :, 0].astype(jnp.float32)
            heads_NLBD = jnp.moveaxis(wrote[heads][:, :, 0].astype(jnp.float32), 2, 0)
            if config.model.norm_position in ("both", "output"):
                heads_NLBD = _after_norm(config, params["layers"], whole, heads_NLBD)
            heads_LNB = jnp.moveaxis(written(heads_NLBD), 0, 1)
            parts |= {heads: heads_LNB, whole: written(added_LBD) - jnp.sum(heads_LNB, axis=1)}
    total_B = sum((jnp.sum(x, axis=tuple(range(x.ndim - 1))) for x in parts.values()), start=jnp.zeros_like(bias_B))
    return parts | {"total": total_B}


def _after_norm(config: Config, layers: Any, whole: str, heads_NLBD: jax.Array) -> jax.Array:
    """What heads [N,L,B,D] write, behind the norm of their layer's output, at the scale that it has of all of them."""
    bias = layers[whole]["output"].get("bias")
    sum_LBD = jnp.sum(heads_NLBD, axis=0) + (0.0 if bias is None else bias.astype(jnp.float32)[:, None])
    if config.model.norm == "layer":
        heads_NLBD, sum_LBD = _centered(heads_NLBD), _centered(sum_LBD)
    scale_LD = layers[f"{whole}_post_norm"]["scale"].astype(jnp.float32)
    return heads_NLBD * (_inverse_size(config, sum_LBD) * scale_LD[:, None])[None]


def _centered(x_D: jax.Array) -> jax.Array:
    return x_D - jnp.mean(x_D, axis=-1, keepdims=True)


def _inverse_size(config: Config, x_D: jax.Array) -> jax.Array:
    """What a norm multiplies vectors [...,D] by, [...,1]."""
    return jax.lax.rsqrt(jnp.mean(jnp.square(x_D), axis=-1, keepdims=True) + config.model.norm_epsilon)
