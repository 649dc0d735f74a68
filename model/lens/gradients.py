"""Gradients of what is predicted with respect to what is computed inside.

Shapes: L layers, B batch, T length, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model.lens.edits import replaced, spot
from model.lens.patch import edited
from model.lens.places import ALL, EMBEDDED, INTERMEDIATES, Asked, Edit, asking, check_recorded, collection
from model.lens.record import found_in, record
from model.source import Source

Measure = Callable[[jax.Array], jax.Array]  # From logits [B,T,V] to a number for each text, [B].


def gradients(
    module: Any, params: Any, tokens_BT: jax.Array, what: Sequence[str], measure: Measure, source: Source | None = None
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """What is computed at the places `what`, and the gradient there of the sum of what is measured, by place.

    Of a value that reaches the output along several ways, the gradient is that of all of them.

    Args:
      measure: a function of the logits, such as a difference of two of them at a token; the same object each time, or
        it is compiled anew.

    Raises:
      KeyError: a place that cannot be changed, or that this network does not have.
    """
    check_recorded(module, what)
    return _gradients(module, params, jnp.asarray(tokens_BT), tuple(what), measure, source)


@partial(jax.jit, static_argnums=(0, 3, 4))
def _gradients(
    module: Any, params: Any, tokens_BT: jax.Array, what: tuple[str, ...], measure: Measure, source: Source | None
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    def run(added: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        edits = {name: Edit(jnp.ones((1,) * x.ndim), x) for name, x in added.items()}
        with asking(Asked(frozenset(what), ALL)):
            logits_BTV, changed = module.apply(
                {"params": params} | collection(module, edits), tokens_BT, source=source, mutable=[INTERMEDIATES]
            )
        return jnp.sum(measure(logits_BTV)), found_in(changed)

    shapes = jax.eval_shape(run, {})[1]
    nothing = {name: jnp.zeros(shape.shape, jnp.float32) for name, shape in shapes.items()}
    slopes, values = jax.grad(run, has_aux=True)(nothing)
    return values, slopes


def attribution_patching(
    module: Any, params: Any, tokens_BT: jax.Array, other_BT: jax.Array, what: Sequence[str], measure: Measure,
    source: Source | None = None,
) -> dict[str, jax.Array]:  # fmt: skip
    """By how much each value of the run on `other_BT` would change what is measured, to first order, by place.

    (other - own) times gradient, summed over the last axis: heads are [L,B,T,N], vectors [L,B,T]. An estimate of
    patching each of them, for the price of two runs. Nanda 2023, "Attribution Patching"; Syed et al. 2023.
    """
    values, slopes = gradients(module, params, tokens_BT, what, measure, source)
    others = record(module, params, other_BT, what, source)
    return {name: jnp.sum((others[name] - values[name]) * slopes[name], axis=-1) for name in what}


def gradient_times_value(
    module: Any, params: Any, tokens_BT: jax.Array, what: Sequence[str], measure: Measure, source: Source | None = None
) -> dict[str, jax.Array]:
    """What is measured less what it would be, to first order, with zeros at a place, summed over the last axis."""
    values, slopes = gradients(module, params, tokens_BT, what, measure, source)
    return {name: jnp.sum(values[name] * slopes[name], axis=-1) for name in what}


def saliency(
    module: Any, params: Any, tokens_BT: jax.Array, measure: Measure, source: Source | None = None
) -> jax.Array:
    """How strongly what is measured depends on each token's vector, [B,T] float32: the length of the gradient there.

    Li et al. 2016, "Visualizing and Understanding Neural Models in NLP", section 5. It needs no attention, so that an
    LSTM can be set beside a Transformer.
    """
    slopes_BTD = gradients(module, params, tokens_BT, (EMBEDDED,), measure, source)[1][EMBEDDED]
    return jnp.linalg.norm(slopes_BTD, axis=-1)


def integrated_gradients(
    module: Any, params: Any, tokens_BT: jax.Array, measure: Measure, *, place: str = EMBEDDED, layer: int = 0,
    baseline: jax.Array | float = 0.0, steps: int = 16, source: Source | None = None,
) -> jax.Array:  # fmt: skip
    """What each token's value at a place contributes to what is measured, against a baseline there, [B,T,...].

    The gradient is averaged over the straight way from the baseline to the value (by Gauss and Legendre's rule) and
    multiplied with the difference. Where all goes through the place, contributions sum to the difference in what is
    measured, if `steps` are enough (Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks").

    Args:
      place: where, of the layer `layer` if it is under `layers`.
      baseline: what is taken for nothing, with the axes of the value in a layer.
    """
    whole = record(module, params, tokens_BT, (place,), source)[place]
    value = whole[layer] if "layers/" in place else whole
    points, weights = np.polynomial.legendre.leggauss(steps)
    inputs = jnp.asarray(tokens_BT), source, jnp.asarray(baseline, jnp.float32), value.astype(jnp.float32)
    path = jnp.array((points + 1) / 2, jnp.float32), jnp.array(weights / 2, jnp.float32)
    return _integrated(module, params, inputs, path, measure, place, layer)


@partial(jax.jit, static_argnums=(0, 4, 5, 6))
def _integrated(
    module: Any, params: Any, inputs: Any, path: tuple[jax.Array, jax.Array], measure: Measure, place: str, layer: int
) -> jax.Array:
    tokens_BT, source, baseline, value = inputs
    in_layers = "layers/" in place

    def measured(x: jax.Array) -> jax.Array:
        there = spot(module, place, tokens_BT.shape[1], layer=layer if in_layers else None)
        edit = replaced(there, x[None] if in_layers else x)
        return jnp.sum(measure(edited(module, params, tokens_BT, {place: edit}, source)))

    slope = jax.grad(measured)
    difference = value - baseline
    slopes = jax.lax.map(lambda at: slope(baseline + at * difference), path[0])
    return jnp.sum(jnp.tensordot(path[1], slopes, 1) * difference, axis=-1)
