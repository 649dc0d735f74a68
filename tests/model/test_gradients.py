"""Gradients inside a network are those of finite differences, and what is made of them adds up."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, random_tokens, tiny

from model import Source, build
from model.lens.gradients import (
    attribution_patching,
    gradient_times_value,
    gradients,
    integrated_gradients,
    saliency,
)
from model.lens.patch import edited
from model.lens.places import Edit
from model.lens.record import record

TOKENS_BT, OTHER_BT = random_tokens(2, 6), random_tokens(2, 6, seed=1)
PLACES = ("layers/attention/heads", "layers/attention/weights", "layers/residual/middle", "embedded")


def measure(logits_BTV):
    return logits_BTV[:, 4, 3] - logits_BTV[:, 4, 9]


@pytest.mark.parametrize(
    ("settings", "places"),
    [({}, PLACES), ({"network": "lstm"}, ("layers/residual/after", "embedded"))],
)
def test_gradients_are_those_of_finite_differences(settings, places):
    module = build(tiny(**settings))
    params = random_params(module)
    values, slopes = gradients(module, params, TOKENS_BT, places, measure)
    random = np.random.default_rng(0)
    nothing = {name: jnp.zeros(value.shape) for name, value in values.items()}

    @jax.jit
    def run(name_to_add):
        return measure(edited(module, params, TOKENS_BT, {n: Edit(jnp.ones(()), x) for n, x in name_to_add.items()}))

    for name in places:
        direction = random.normal(size=values[name].shape).astype(np.float32)
        if name.endswith("weights"):
            direction = np.tril(direction)
        step = 1e-2 * np.abs(values[name]).mean()
        ahead, behind = (
            np.asarray(run(nothing | {name: jnp.asarray(sign * step * direction)}), np.float64) for sign in (1, -1)
        )
        assert float((slopes[name] * direction).sum()) == pytest.approx((ahead - behind).sum() / (2 * step), rel=0.02)


def test_first_order_estimates_are_exact_where_the_rest_is_linear():
    """A head of the last layer, without norm or feed-forward layer behind it, adds to the logit what it writes."""
    module = build(tiny(final_norm="off"))
    params = random_params(module)
    feed_forward = jax.tree.map(jnp.zeros_like, params["layers"]["feed_forward"])
    params = params | {"layers": params["layers"] | {"feed_forward": feed_forward}}
    place = "layers/attention/out_per_head"
    estimate_LBTN = np.asarray(attribution_patching(module, params, TOKENS_BT, OTHER_BT, (place,), measure)[place])
    ours, theirs = (np.asarray(record(module, params, tokens, (place,))[place]) for tokens in (TOKENS_BT, OTHER_BT))
    table_VD = np.asarray(params["embedding"]["embedding"])
    direction_D = table_VD[3] - table_VD[9]
    np.testing.assert_allclose(estimate_LBTN[1, :, 4], (theirs - ours)[1, :, 4] @ direction_D, atol=1e-3)
    np.testing.assert_allclose(estimate_LBTN[1, :, :4], 0, atol=1e-6)
    times_LBTN = gradient_times_value(module, params, TOKENS_BT, (place,), measure)[place]
    np.testing.assert_allclose(times_LBTN[1, :, 4], ours[1, :, 4] @ direction_D, atol=1e-3)


@pytest.mark.slow
def test_integrated_gradients_sum_to_the_difference():
    """A norm is not smooth at zero, so the baseline is another text."""
    module = build(tiny(norm="layer", scale_embeddings=True))
    params = random_params(module)
    other, ours = (record(module, params, tokens, ("embedded",)) for tokens in (OTHER_BT, TOKENS_BT))
    shares_BT = integrated_gradients(module, params, TOKENS_BT, measure, baseline=other["embedded"], steps=160)
    difference_B = np.asarray(measure(ours["logits"]) - measure(other["logits"]))
    np.testing.assert_allclose(np.asarray(shares_BT).sum(1), difference_B, rtol=0.02, atol=0.02)
    np.testing.assert_allclose(shares_BT[:, 5], 0, atol=1e-6)


def test_saliency_needs_no_attention():
    module = build(tiny(network="lstm_encoder_decoder"))
    params = random_params(module)
    source = Source.of(jnp.asarray(OTHER_BT))
    saliency_BT = np.asarray(saliency(module, params, TOKENS_BT, measure, source))
    assert saliency_BT.shape == (2, 6)
    assert (saliency_BT[:, :5] > 0).all()
    assert (saliency_BT[:, 5] == 0).all()  # It comes after what is measured.
