"""The logit lens ends in the logits, and what components write sums to them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, random_tokens, tiny

from configs.schema import ConfigError
from model import Source, build
from model.lens.logits import direct_attribution, logit_lens
from model.lens.record import record

TOKENS_BT = random_tokens(2, 7)
GEMMA = {
    "norm_position": "both", "logit_softcap": 5.0, "biases": True, "norm": "layer", "tied_embeddings": False,
    "output_bias": True, "logit_scale": 0.7,
}  # fmt: skip


@pytest.mark.parametrize("settings", [GEMMA, {"norm_position": "post"}, {"network": "lstm"}])
def test_the_last_layer_of_the_lens_is_the_logits(settings):
    module = build(tiny(**settings))
    params = random_params(module)
    found = record(module, params, TOKENS_BT, ("layers/residual/after",))
    lens_LBTV = logit_lens(module, params, found["layers/residual/after"])
    assert lens_LBTV.shape == (2, 2, 7, 32)
    np.testing.assert_allclose(lens_LBTV[-1], found["logits"], atol=1e-4)
    assert np.abs(lens_LBTV[0] - found["logits"]).max() > 0.1


@pytest.mark.parametrize(
    "settings",
    [GEMMA, pytest.param({"attention": "latent", "num_experts": 4}, marks=pytest.mark.slow), {"feed_forward": False}],
)
def test_what_components_write_sums_to_the_logit(settings):
    module = build(tiny(**settings))
    params = random_params(module)
    ids_B = np.array([3, 17], np.int32)
    logits_BV = np.asarray(record(module, params, TOKENS_BT, ())["logits"])[:, 4]
    if "logit_softcap" in settings:
        logits_BV = 5 * np.arctanh(logits_BV.astype(np.float64) / 5)
    parts = direct_attribution(module, params, TOKENS_BT, 4, ids_B)
    assert parts["heads"].shape == (2, 4, 2)
    total_B = sum(np.asarray(x, np.float64).reshape(-1, 2).sum(0) for name, x in parts.items() if name != "total")
    np.testing.assert_allclose(total_B, logits_BV[[0, 1], ids_B], atol=1e-4)
    np.testing.assert_allclose(parts["total"], total_B, atol=1e-4)


def test_what_a_head_writes_is_what_its_output_weights_make_of_what_it_read():
    """With the norm's scale frozen, so that the logit is linear: for the difference of two, by hand in float64."""
    module = build(tiny(norm="layer"))
    params = random_params(module)
    found = record(module, params, TOKENS_BT, ("layers/attention/heads", "layers/residual/after"))
    read_LBNH = np.asarray(found["layers/attention/heads"], np.float64)[:, :, 4]
    wrote_LBND = np.einsum("LBNH,LNHD->LBND", read_LBNH, params["layers"]["attention"]["output"]["kernel"])
    last_BD = np.asarray(found["layers/residual/after"], np.float64)[-1, :, 4]
    scaled_LBND = (wrote_LBND - wrote_LBND.mean(-1, keepdims=True)) / np.sqrt(last_BD.var(-1) + 1e-6)[:, None, None]
    scaled_LBND = scaled_LBND * np.asarray(params["final_norm"]["scale"])
    table_VD = np.asarray(params["embedding"]["embedding"])
    expected_LNB = np.einsum("LBND,D->LNB", scaled_LBND, table_VD[9] - table_VD[2])
    parts = direct_attribution(module, params, TOKENS_BT, -3, np.array([[9, 2], [9, 2]], np.int32))
    np.testing.assert_allclose(parts["heads"], expected_LNB, atol=1e-4)


@pytest.mark.slow
def test_heads_of_a_translator_are_told_apart_from_those_that_read_the_source():
    module = build(tiny(network="encoder_decoder", biases=True))
    params = random_params(module)
    source = Source.of(jnp.asarray(random_tokens(2, 5, seed=1)))
    parts = direct_attribution(module, params, TOKENS_BT, 4, np.array([3, 17], np.int32), source)
    logits_BTV = jax.jit(module.apply)({"params": params}, TOKENS_BT, source=source)
    np.testing.assert_allclose(parts["total"], logits_BTV[[0, 1], 4, [3, 17]], atol=1e-4)
    assert np.abs(parts["cross_heads"]).min() > 0
    assert np.abs(parts["cross_attention"]).min() > 0


@pytest.mark.parametrize("settings", [{"norm_position": "post"}, {"network": "lstm"}])
def test_networks_whose_logits_are_no_sum_are_refused(settings):
    module = build(tiny(**settings))
    with pytest.raises(ConfigError, match=f"--model.{next(iter(settings))}="):
        direct_attribution(module, {}, TOKENS_BT, 4, np.array([3, 17], np.int32))
