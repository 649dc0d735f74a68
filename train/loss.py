"""Cross entropy over next tokens, as sums, so that microbatches and devices add up to the exact result."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from configs.derived import in_use
from configs.schema import Config
from model import Head
from model.sharding import constrain_parameters, ways
from model.transformer import softcap

LOGITS = 2**26  # Numbers of logits that a device holds at once: 256 MiB in float32.
HEAD_PARAMETERS = ("embedding", "output", "output_bias")


class Loss(NamedTuple):
    """Sums over all targets that count; float32 scalars."""

    objective: jax.Array  # what is minimized: smoothed cross entropy plus the z-loss
    nll: jax.Array  # negative log-likelihood in nats, without smoothing or z-loss
    z: jax.Array  # z-loss, already times its weight
    targets: jax.Array  # how many there are


def cross_entropy(
    logits_BTV: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Loss:
    """Sums of the losses of `targets_BT` (int32) under `logits_BTV`, each times its weight (0 or 1).

    Label smoothing (Szegedy et al. 2016, section 7) spreads that share of the target evenly over the
    vocabulary; the z-loss (Chowdhery et al. 2022, PaLM, section 5) adds z_loss * log(Z)^2 per target.
    Everything is computed in float32 whatever the dtype of the logits.
    """
    logits_BTV = logits_BTV.astype(jnp.float32)
    weights_BT = weights_BT.astype(jnp.float32)
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    # On CPU this gather and its scatter are 1.6 times faster, matmuls included, than comparing each logit's
    # index with the target, and need one array of the size of the logits less (B 16, T 256, D 256, V 4096).
    target_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    nll_BT = log_z_BT - target_BT
    objective_BT = nll_BT
    if in_use(label_smoothing):
        uniform_BT = log_z_BT - jnp.mean(logits_BTV, axis=-1)
        objective_BT = (1 - label_smoothing) * nll_BT + label_smoothing * uniform_BT
    z_BT = z_loss * jnp.square(log_z_BT)
    if in_use(z_loss):
        objective_BT = objective_BT + z_BT
    return Loss(
        objective=jnp.sum(objective_BT * weights_BT),
        nll=jnp.sum(nll_BT * weights_BT),
        z=jnp.sum(z_BT * weights_BT),
        targets=jnp.sum(weights_BT),
    )


def output_loss(
    config: Config,
    params: Any,
    x_BTD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    *,
    chunks: int | None = None,
) -> Loss:
    """`cross_entropy` of the logits that a network's output layer makes of x_BTD, which never exist as a whole.

    Part c of the text is the tokens c, c + C, c + 2C, ..., so that devices that share the length share each part.
    Where a gradient is asked for, that of each part is computed beside its loss and only the sum is kept: nothing is
    computed twice. It is the gradient of `objective`; the other sums are not to be differentiated.

    Devices that each keep a share of the output layer bring it together once. The gradient of it needs an exchange
    between them as well, so it is computed for a group of parts at a time (see `_groups`), whose gradients of the
    logits are kept until then, in the dtype of x_BTD.

    Args:
      params: those of the network; x_BTD is what it returned with `head=False`.
      chunks: how many parts C, a divisor of T; by default as few as keep LOGITS.
    """
    head_params = {name: params[name] for name in HEAD_PARAMETERS if name in params}
    if not config.model.tied_embeddings:
        head_params.pop("embedding", None)
    chunks = _chunks(config, *x_BTD.shape[:2]) if chunks is None else chunks
    groups = _groups(config, x_BTD.shape[0], x_BTD.shape[1], chunks)

    def scores(params: Any, x_BtD: jax.Array) -> jax.Array:
        scores_BtV: Any = Head(config).apply({"params": params}, x_BtD)
        return scores_BtV

    def loss(scores_BtV: jax.Array, targets_Bt: jax.Array, weights_Bt: jax.Array) -> tuple[jax.Array, Loss]:
        sums = cross_entropy(softcap(config, scores_BtV), targets_Bt, weights_Bt, label_smoothing, z_loss)
        return sums.objective, sums

    if chunks == 1:
        return loss(scores(head_params, x_BTD), targets_BT, weights_BT)[1]
    nothing = Loss(*[jnp.float32(0)] * len(Loss._fields))

    @jax.custom_vjp
    def total(params: Any, *inputs: jax.Array) -> Loss:
        whole = _whole(config, params)

        def add(sums: Loss, inputs: Any) -> tuple[Loss, None]:
            x_BtD, *rest = inputs
            return jax.tree.map(jnp.add, sums, loss(scores(whole, x_BtD), *rest)[1]), None

        return jax.lax.scan(add, nothing, [_split(x, chunks) for x in inputs])[0]

    def forward(params: Any, *inputs: jax.Array) -> tuple[Loss, Any]:
        whole = _whole(config, params)

        def part(sums: Loss, inputs: Any) -> tuple[Loss, tuple[jax.Array, jax.Array]]:
            x_BtD, *rest = inputs
            scores_BtV, to_x = jax.vjp(functools.partial(scores, whole), x_BtD)
            (_, more), d_scores_BtV = jax.value_and_grad(loss, has_aux=True)(scores_BtV, *rest)
            d_scores_BtV = d_scores_BtV.astype(x_BtD.dtype)
            return jax.tree.map(jnp.add, sums, more), (d_scores_BtV, *to_x(d_scores_BtV.astype(jnp.float32)))

        def group(carry: Any, inputs: Any) -> tuple[Any, jax.Array]:
            sums, d_params = carry
            sums, parts = jax.lax.scan(part, sums, [_split(x, chunks // groups) for x in inputs])
            d_scores_BtV, d_x_BtD = (_join(x) for x in parts)
            more = jax.vjp(lambda params: scores(params, inputs[0]), whole)[1](d_scores_BtV.astype(jnp.float32))[0]
            more = constrain_parameters(more)
            return (sums, jax.tree.map(lambda a, b: a + b.astype(jnp.float32), d_params, more)), d_x_BtD

        start = nothing, jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
        (sums, d_params), d_x_GBtD = jax.lax.scan(group, start, [_split(x, groups) for x in inputs])
        return sums, (jax.tree.map(lambda x, like: x.astype(like.dtype), d_params, params), _join(d_x_GBtD))

    def backward(gradients: Any, d_sums: Loss) -> Any:
        return (
            *jax.tree.map(lambda x: (x.astype(jnp.float32) * d_sums.objective).astype(x.dtype), gradients),
            None,
            None,
        )

    total.defvjp(forward, backward)
    return total(head_params, x_BTD, targets_BT, weights_BT)


def _whole(config: Config, params: Any) -> Any:
    """The output layer as it is computed with: its matrix in that dtype, and brought together on each device."""
    dtype = jnp.dtype(config.model.dtype)
    return constrain_parameters(jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, params), whole=True)


def _chunks(config: Config, rows: int, length: int) -> int:
    """Into how many parts a text is split so that a device holds at most LOGITS logits at once (or one token's)."""
    logits = rows * length * config.tokenizer.vocab_size // ways("rows", "length", "vocabulary")
    fewest = min(length, -(-logits // LOGITS))
    return _divisor(length, fewest)


def _groups(config: Config, rows: int, length: int, chunks: int) -> int:
    """Of how many groups of parts the gradient of the output layer is the sum: a divisor of `chunks`.

    Where devices keep shares of the layer, as few as leave a device at most D tokens in a group: the gradients of its
    logits are then no larger than the layer itself, and computing takes several times as long as the exchange.
    """
    if ways("embed") == 1:
        return chunks
    fewest = min(chunks, -(-rows * length // ways("rows", "length") // config.model.width))
    return _divisor(chunks, fewest)


def _divisor(number: int, least: int) -> int:
    """The smallest divisor of a number that is at least `least`."""
    return next(divisor for divisor in range(least, number + 1) if number % divisor == 0)


def _split(x_BT: jax.Array, chunks: int) -> jax.Array:
    """[B,T,...] as C interleaved parts, [C,B,T/C,...]."""
    B, T, *others = x_BT.shape
    return jnp.moveaxis(x_BT.reshape(B, T // chunks, chunks, *others), 2, 0)


def _join(x_CBT: jax.Array) -> jax.Array:
    """The inverse of `_split`: [C,B,T/C,...] as [B,T,...]."""
    C, B, T, *others = x_CBT.shape
    return jnp.moveaxis(x_CBT, 0, 2).reshape(B, T * C, *others)
