"""Each entry of a knock-out table is what a separate run of the network without that head or layer gives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, random_tokens, tiny

from configs.schema import ConfigError
from model import Source, build
from model.lens.edits import replaced, spot
from model.lens.knockout import knock_out_heads, knock_out_layers, knock_out_logits
from model.lens.patch import edited
from model.lens.places import ADDED, HEADS, without_heads
from model.lens.record import record

TOKENS_BT = random_tokens(2, 7)
_edited = jax.jit(edited, static_argnums=0)


def nll(logits_BTV, length):
    """Mean next-token loss of each text's first tokens, in float64."""
    logits_BTV = np.asarray(logits_BTV, np.float64)[:, : length - 1]
    log_z_BT = np.log(np.exp(logits_BTV).sum(-1))
    target_BT = np.take_along_axis(logits_BTV, TOKENS_BT[:, 1:length, None], axis=-1)[..., 0]
    return (log_z_BT - target_BT).mean(1)


def test_each_head_is_knocked_out_as_in_a_run_of_its_own():
    """Of texts of five tokens, with padding behind them, which counts for nothing."""
    module = build(tiny(num_layers=3, window=3, window_pattern="LG"))
    params = random_params(module)
    segments_BT = (np.arange(7) < 5).astype(np.int32)[None].repeat(2, axis=0)
    plain_BTV = _edited(module, params, TOKENS_BT, {HEADS[0]: without_heads(3, 4, [])})
    changes_LNB = knock_out_heads(module, params, TOKENS_BT, segments_BT=segments_BT, tokens_at_once=14 * 3)
    done = []
    logits_LNBV = knock_out_logits(module, params, TOKENS_BT, -2, on_layer=lambda *layers: done.append(layers))
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert changes_LNB.shape == (3, 4, 2)
    for layer, head in ((0, 0), (1, 3), (2, 1)):
        without_BTV = _edited(module, params, TOKENS_BT, {HEADS[0]: without_heads(3, 4, [(layer, head)])})
        np.testing.assert_allclose(changes_LNB[layer, head], nll(without_BTV, 5) - nll(plain_BTV, 5), atol=1e-4)
        np.testing.assert_allclose(logits_LNBV[layer, head], without_BTV[:, 5], atol=1e-4)
    assert np.abs(changes_LNB).min() > 1e-4


def test_each_layer_is_knocked_out_as_in_a_run_of_its_own():
    """By what it adds to another text: what stands in its place."""
    module = build(tiny(norm_position="both"))
    params = random_params(module)
    place = ADDED[2]
    found = record(module, params, TOKENS_BT[::-1], (place,))
    changes_LB = knock_out_layers(module, params, TOKENS_BT, place=place, instead=found[place])
    plain_BTV = np.asarray(found["logits"])[::-1]
    for layer in range(2):
        edit = replaced(spot(module, place, 7, layer=layer), found[place])
        without_BTV = _edited(module, params, TOKENS_BT, {place: edit})
        np.testing.assert_allclose(changes_LB[layer], nll(without_BTV, 7) - nll(plain_BTV, 7), atol=1e-4)


@pytest.mark.slow
def test_heads_that_read_a_source_are_knocked_out_by_name():
    module = build(tiny(network="encoder_decoder"))
    params = random_params(module)
    source = Source.of(jnp.asarray(random_tokens(2, 5, seed=1)))
    cross_LNB = knock_out_heads(module, params, TOKENS_BT, source, place=HEADS[1])
    kernel_LNHD = params["layers"]["cross_attention"]["output"]["kernel"]
    cross = params["layers"]["cross_attention"] | {"output": {"kernel": kernel_LNHD.at[1, 2].set(0)}}
    apply = jax.jit(module.apply)
    without = params | {"layers": params["layers"] | {"cross_attention": cross}}
    plain_BTV, without_BTV = (apply({"params": p}, TOKENS_BT, source=source) for p in (params, without))
    np.testing.assert_allclose(cross_LNB[1, 2], nll(without_BTV, 7) - nll(plain_BTV, 7), atol=1e-4)


def test_what_a_network_does_not_have_is_not_knocked_out():
    with pytest.raises(ConfigError, match="lstm has no layers/attention/heads"):
        knock_out_heads(build(tiny(network="lstm")), {}, TOKENS_BT)
    with pytest.raises(ConfigError, match="encoder does not predict the next token"):
        knock_out_heads(build(tiny(network="encoder")), {}, TOKENS_BT)
    with pytest.raises(ConfigError, match=r"cross_attention/heads cannot .* these can: layers/attention/heads\.$"):
        knock_out_heads(build(tiny()), {}, TOKENS_BT, place=HEADS[1])
