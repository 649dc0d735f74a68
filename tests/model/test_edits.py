"""Edits at every place: by layer, head and token, of any kind, many of them in one program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, random_tokens, tiny

from model import Source, build
from model.generate.cache import empty_cache
from model.lens.edits import added, hidden, replaced, scaled, spot
from model.lens.patch import edited, patch_paths
from model.lens.places import HEADS, Edit, editable
from model.lens.record import record

TOKENS_BT, OTHER_BT = random_tokens(2, 7), random_tokens(2, 7, seed=1)


class Network:
    """A network with an edit at each of its places, most of which change nothing: one program for all tests."""

    def __init__(self):
        self.module = build(tiny())
        self.params = random_params(self.module)
        self.places = editable(self.module)
        shapes = jax.eval_shape(lambda: record(self.module, self.params, TOKENS_BT, self.places))
        self.shapes = {name: shapes[name].shape for name in self.places}
        self.ours, self.theirs = self.run(TOKENS_BT, {}), self.run(OTHER_BT, {})

    def spot(self, name, **where):
        return spot(self.module, name, 7, **where)

    def run(self, tokens_BT, edits):
        """All that can be seen of a run with these edits."""
        nothing = Edit(jnp.ones(()), jnp.zeros(()))
        full = {
            name: jax.tree.map(lambda x, shape=shape: jnp.broadcast_to(x, shape), edits.get(name, nothing))
            for name, shape in self.shapes.items()
        }
        assert edits.keys() <= full.keys()
        return record(self.module, self.params, tokens_BT, self.places, edits=full)


@pytest.fixture(scope="module")
def network():
    return Network()


def test_edits_that_change_nothing_leave_the_network_as_it_is(network):
    logits_BTV = jax.jit(network.module.apply)({"params": network.params}, TOKENS_BT)
    np.testing.assert_allclose(network.ours["logits"], logits_BTV, atol=1e-4)
    assert len(network.places) == 15


def test_places_that_all_goes_through_give_the_other_run(network):
    for edits in (
        {"final"},
        {"embedded"},
        {f"layers/attention/{name}" for name in ("query", "key", "value")} | {"layers/residual/before"},
        {"layers/attention/weights", "layers/attention/value", "layers/residual/before"},
        {"layers/attention/out_per_head", "layers/feed_forward/hidden", "layers/residual/before"},
    ):
        changed = {name: replaced(network.spot(name, layer=1), network.theirs[name]) for name in edits}
        np.testing.assert_allclose(network.run(TOKENS_BT, changed)["logits"], network.theirs["logits"], atol=1e-4)


def test_own_values_in_their_own_place_change_nothing(network):
    edits = {name: replaced(network.spot(name, token=3), network.ours[name]) for name in network.places}
    np.testing.assert_allclose(network.run(TOKENS_BT, edits)["logits"], network.ours["logits"], atol=1e-4)


def test_a_key_that_is_hidden_gets_no_weight_and_the_others_get_it(network):
    names = ("layers/attention/scores", "layers/attention/weights")
    at = network.spot(names[0], layer=0, head=2, token=5, key=1)
    found = network.run(TOKENS_BT, {names[0]: hidden(at)})
    weights_LBNTS, plain_LBNTS = np.asarray(found[names[1]]), np.asarray(network.ours[names[1]])
    row_BS = plain_LBNTS[0, :, 2, 5].copy()
    row_BS[:, 1] = 0
    np.testing.assert_allclose(weights_LBNTS[0, :, 2, 5], row_BS / row_BS.sum(-1, keepdims=True), atol=1e-6)
    others = np.ones((4, 7), bool)
    others[2, 5] = False
    np.testing.assert_allclose(weights_LBNTS[0][:, others], plain_LBNTS[0][:, others], atol=1e-6)


def test_with_attention_frozen_values_alone_make_the_difference(network):
    """Frozen weights of the same run, while what is read changes: by hand, head by head."""
    names = [f"layers/attention/{name}" for name in ("weights", "value", "heads")]
    ours = network.ours
    found = network.run(OTHER_BT, {names[0]: replaced(network.spot(names[0]), ours[names[0]])})
    np.testing.assert_allclose(found[names[0]], ours[names[0]], atol=1e-6)
    value_LBSNH = np.repeat(np.asarray(found[names[1]]), 2, axis=3)
    expected = np.einsum("LBNTS,LBSNH->LBTNH", ours[names[0]], value_LBSNH)
    np.testing.assert_allclose(found[names[2]], expected, atol=1e-5)
    assert np.abs(found["logits"] - network.theirs["logits"]).max() > 0.01


def test_many_edits_are_one_program(network):
    name, ours = "layers/attention/query", network.ours

    def run(head, factor):
        edits = {name: scaled(network.spot(name, layer=1, head=head), factor)}
        return edited(network.module, network.params, TOKENS_BT, edits)

    heads_E, factors_E = jnp.array([0, 3, 3]), jnp.array([0.0, 2.0, 1.0])
    logits_EBTV = jax.jit(jax.vmap(run))(heads_E, factors_E)
    np.testing.assert_allclose(logits_EBTV[2], ours["logits"], atol=1e-4)
    query = np.array(ours[name])
    query[1, :, :, 3] *= 2
    doubled = {name: replaced(network.spot(name, layer=1), jnp.asarray(query))}
    np.testing.assert_allclose(logits_EBTV[1], network.run(TOKENS_BT, doubled)["logits"], atol=1e-4)
    assert np.abs(logits_EBTV[0] - logits_EBTV[2]).max() > 0.01


def test_what_is_added_is_recorded(network):
    name, direction_D = "layers/residual/middle", jnp.arange(16.0)
    found = network.run(TOKENS_BT, {name: added(network.spot(name, layer=1, token=-1), direction_D)})
    difference = np.asarray(found[name]) - np.asarray(network.ours[name])
    np.testing.assert_allclose(difference[1, :, 6], np.broadcast_to(direction_D, (2, 16)), atol=1e-5)
    np.testing.assert_allclose(difference[0], 0, atol=1e-5)
    np.testing.assert_allclose(difference[1, :, :6], 0, atol=1e-5)


def test_a_path_from_a_head_of_the_last_layer_to_the_logits_is_that_head(network):
    receiver = ("final", network.spot("final"))
    paths_LNBV = np.asarray(patch_paths(network.module, network.params, TOKENS_BT, OTHER_BT, 4, receiver))
    assert paths_LNBV.shape == (2, 4, 2, 32)
    edit = {HEADS[0]: replaced(network.spot(HEADS[0], layer=1, head=2), network.theirs[HEADS[0]])}
    np.testing.assert_allclose(paths_LNBV[1, 2], network.run(TOKENS_BT, edit)["logits"][:, 4], atol=1e-4)
    # From the first layer it goes past the heads of the second, which patching the head itself does not.
    edit = {HEADS[0]: replaced(network.spot(HEADS[0], layer=0, head=2), network.theirs[HEADS[0]])}
    assert np.abs(paths_LNBV[0, 2] - network.run(TOKENS_BT, edit)["logits"][:, 4]).max() > 0.01


@pytest.mark.slow
def test_places_of_a_translator_are_edited_in_both_its_parts():
    module = build(tiny(network="encoder_decoder"))
    params, source = random_params(module), Source.of(jnp.asarray(random_tokens(2, 5, seed=2)))
    other = Source.of(jnp.asarray(random_tokens(2, 5, seed=3)))
    names = ("layers/cross_attention/key", "encoder/layers/residual/after")  # Values are made of the second.
    theirs = record(module, params, TOKENS_BT, names, other)
    edits = {name: replaced(spot(module, name, 5), theirs[name]) for name in names}
    found = record(module, params, TOKENS_BT, (), source, edits)
    np.testing.assert_allclose(found["logits"], theirs["logits"], atol=1e-4)


def test_an_lstm_that_forgets_all_and_lets_nothing_in_knows_only_what_comes_after():
    """At the token 3, in every layer: what follows does not depend on what came before."""
    module = build(tiny(network="lstm"))
    params = random_params(module)
    names = [f"layers/lstm/{gate}" for gate in ("forget", "input")]
    edits = {name: scaled(spot(module, name, 7, token=3), 0) for name in names}
    before_BT = np.concatenate([OTHER_BT[:, :4], TOKENS_BT[:, 4:]], axis=1)
    runs = [record(module, params, tokens_BT, names, edits=edits) for tokens_BT in (TOKENS_BT, before_BT)]
    assert not np.any(runs[0][names[0]][:, :, 3])
    assert np.any(runs[0][names[0]][:, :, 4])
    np.testing.assert_allclose(runs[0]["logits"][:, 4:], runs[1]["logits"][:, 4:], atol=1e-5)
    assert np.abs(runs[0]["logits"][:, :4] - runs[1]["logits"][:, :4]).max() > 0.01


@pytest.mark.parametrize(
    "attention", ["linear", *(pytest.param(name, marks=pytest.mark.slow) for name in ("delta", "latent"))]
)
def test_queries_keys_and_values_of_every_kind_of_attention_are_recorded_and_replaced(attention):
    """With those of another run, and what enters the layer, it goes on as that run."""
    module, params, names, theirs = of_other_attention(attention)
    assert [theirs[name].shape[:4] for name in names] == [(1, 2, 7, 4)] * 3
    edits = {name: replaced(spot(module, name, 7), theirs[name]) for name in theirs if name != "logits"}
    found = record(module, params, TOKENS_BT, (), edits=edits)
    np.testing.assert_allclose(found["logits"], theirs["logits"], atol=1e-4)


def test_keys_that_are_made_from_kept_latents_are_recorded_and_replaced_as_they_are_read():
    """Of the tokens that are new; those before them are in the cache."""
    module, params, names, theirs = of_other_attention("latent")
    begun = record(module, params, OTHER_BT[:, :4], (), cache=empty_cache(module.config, 2, 9))
    edits = {name: replaced(spot(module, name, 3), theirs[name][:, :, 4:]) for name in theirs if name != "logits"}
    places_BT = np.broadcast_to(np.arange(4, 7), (2, 3))
    found = record(module, params, TOKENS_BT[:, 4:], names, None, edits, begun["cache"], places_BT)
    for name in names:
        np.testing.assert_allclose(found[name], theirs[name][:, :, 4:], atol=1e-5)
    np.testing.assert_allclose(found["logits"], theirs["logits"][:, 4:], atol=1e-4)


def of_other_attention(attention):
    """A network of one layer, its parameters, three of its places, and these and what enters it of a run."""
    position = "rope" if attention == "latent" else "none"
    module = build(tiny(attention=attention, num_kv_heads=0, position=position, num_layers=1, layers="unroll"))
    params, names = random_params(module), [f"layers/attention/{name}" for name in ("query", "key", "value")]
    return module, params, names, record(module, params, OTHER_BT, (*names, "layers/residual/before"))
