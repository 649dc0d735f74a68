"""Edits at every place: by layer, head and token, of any kind, many of them in one program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, random_tokens, tiny

from model import Source, build
from model.lens.edits import added, hidden, replaced, scaled, spot
from model.lens.patch import edited, patch_paths
from model.lens.places import HEADS, editable
from model.lens.record import record

TOKENS_BT, OTHER_BT = random_tokens(2, 7), random_tokens(2, 7, seed=1)
_edited = jax.jit(edited, static_argnums=0)


@pytest.fixture(scope="module")
def network():
    """A network, its parameters, and all places of a run on each of two texts."""
    module = build(tiny())
    params = random_params(module)
    return module, params, *(record(module, params, tokens_BT, editable(module)) for tokens_BT in (TOKENS_BT, OTHER_BT))


def test_places_that_all_goes_through_give_the_other_run(network):
    module, params, _, theirs = network
    for edits in (
        {"final"},
        {f"layers/attention/{name}" for name in ("query", "key", "value")} | {"layers/residual/before"},
        {"layers/attention/weights", "layers/attention/value", "layers/residual/before"},
        {"layers/attention/out_per_head", "layers/feed_forward/hidden", "layers/residual/before"},
    ):
        changed = {name: replaced(spot(module, name, 7, layer=1), theirs[name]) for name in edits}
        np.testing.assert_allclose(_edited(module, params, TOKENS_BT, changed), theirs["logits"], atol=1e-4)


def test_own_values_in_their_own_place_change_nothing(network):
    module, params, ours, _ = network
    edits = {name: replaced(spot(module, name, 7, token=3), ours[name]) for name in editable(module)}
    np.testing.assert_allclose(_edited(module, params, TOKENS_BT, edits), ours["logits"], atol=1e-4)


def test_a_key_that_is_hidden_gets_no_weight_and_the_others_get_it(network):
    module, params, ours, _ = network
    names = ("layers/attention/scores", "layers/attention/weights")
    at = spot(module, names[0], 7, layer=0, head=2, token=5, key=1)
    found = record(module, params, TOKENS_BT, names, edits={names[0]: hidden(at)})
    weights_LBNTS, plain_LBNTS = np.asarray(found[names[1]]), np.asarray(ours[names[1]])
    row_BS = plain_LBNTS[0, :, 2, 5].copy()
    row_BS[:, 1] = 0
    np.testing.assert_allclose(weights_LBNTS[0, :, 2, 5], row_BS / row_BS.sum(-1, keepdims=True), atol=1e-6)
    others = np.ones((4, 7), bool)
    others[2, 5] = False
    np.testing.assert_allclose(weights_LBNTS[0][:, others], plain_LBNTS[0][:, others], atol=1e-6)


def test_with_attention_frozen_values_alone_make_the_difference(network):
    """Frozen weights of the same run, while what is read changes: by hand, head by head."""
    module, params, ours, theirs = network
    names = [f"layers/attention/{name}" for name in ("weights", "value", "heads")]
    edits = {names[0]: replaced(spot(module, names[0], 7), ours[names[0]])}
    found = record(module, params, OTHER_BT, names, edits=edits)
    np.testing.assert_allclose(found[names[0]], ours[names[0]], atol=1e-6)
    value_LBSNH = np.repeat(np.asarray(found[names[1]]), 2, axis=3)
    expected = np.einsum("LBNTS,LBSNH->LBTNH", ours[names[0]], value_LBSNH)
    np.testing.assert_allclose(found[names[2]], expected, atol=1e-5)
    assert np.abs(found["logits"] - theirs["logits"]).max() > 0.01


def test_many_edits_are_one_program(network):
    module, params, ours, _ = network
    name = "layers/attention/query"

    def run(head, factor):
        return edited(module, params, TOKENS_BT, {name: scaled(spot(module, name, 7, layer=1, head=head), factor)})

    heads_E, factors_E = jnp.array([0, 3, 3]), jnp.array([0.0, 2.0, 1.0])
    logits_EBTV = jax.jit(jax.vmap(run))(heads_E, factors_E)
    np.testing.assert_allclose(logits_EBTV[2], ours["logits"], atol=1e-4)
    query = np.array(ours[name])
    query[1, :, :, 3] *= 2
    doubled = {name: replaced(spot(module, name, 7, layer=1), jnp.asarray(query))}
    np.testing.assert_allclose(logits_EBTV[1], _edited(module, params, TOKENS_BT, doubled), atol=1e-4)
    assert np.abs(logits_EBTV[0] - logits_EBTV[2]).max() > 0.01


def test_what_is_added_is_recorded(network):
    module, params, ours, _ = network
    name = "layers/residual/middle"
    direction_D = jnp.arange(16.0)
    edits = {name: added(spot(module, name, 7, layer=1, token=-1), direction_D)}
    found = record(module, params, TOKENS_BT, (name,), edits=edits)
    difference = np.asarray(found[name]) - np.asarray(ours[name])
    np.testing.assert_allclose(difference[1, :, 6], np.broadcast_to(direction_D, (2, 16)), atol=1e-5)
    np.testing.assert_allclose(difference[0], 0, atol=1e-5)
    np.testing.assert_allclose(difference[1, :, :6], 0, atol=1e-5)


def test_a_path_from_a_head_of_the_last_layer_to_the_logits_is_that_head(network):
    module, params, _, theirs = network
    paths_LNBV = np.asarray(patch_paths(module, params, TOKENS_BT, OTHER_BT, 4, ("final", spot(module, "final", 7))))
    assert paths_LNBV.shape == (2, 4, 2, 32)
    edit = {HEADS[0]: replaced(spot(module, HEADS[0], 7, layer=1, head=2), theirs[HEADS[0]])}
    np.testing.assert_allclose(paths_LNBV[1, 2], _edited(module, params, TOKENS_BT, edit)[:, 4], atol=1e-4)
    # From the first layer it goes past the heads of the second, which patching the head itself does not.
    edit = {HEADS[0]: replaced(spot(module, HEADS[0], 7, layer=0, head=2), theirs[HEADS[0]])}
    assert np.abs(paths_LNBV[0, 2] - _edited(module, params, TOKENS_BT, edit)[:, 4]).max() > 0.01


def test_places_of_a_translator_are_edited_in_both_its_parts():
    module = build(tiny(network="encoder_decoder"))
    params, source = random_params(module), Source.of(jnp.asarray(random_tokens(2, 5, seed=2)))
    other = Source.of(jnp.asarray(random_tokens(2, 5, seed=3)))
    names = [f"layers/cross_attention/{name}" for name in ("key", "value")]
    theirs = record(module, params, TOKENS_BT, [*names, "encoder/layers/residual/after"], other)
    for chosen in (names, ["encoder/layers/residual/after"]):
        edits = {name: replaced(spot(module, name, 5), theirs[name]) for name in chosen}
        found = record(module, params, TOKENS_BT, (), source, edits)
        np.testing.assert_allclose(found["logits"], theirs["logits"], atol=1e-4)
