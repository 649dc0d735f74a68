"""Edits change what they name and nothing else; without any, the program is the same."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, random_tokens, tiny

from model import Source, build, transformer
from model.lens.patch import edited, patch_everywhere
from model.lens.places import HEADS, RESIDUAL, Edit, without_heads
from model.lens.record import record

TOKENS_BT, OTHER_BT = random_tokens(2, 7), random_tokens(2, 7, seed=1)
AT = 3
_edited = jax.jit(edited, static_argnums=0)


@pytest.fixture(scope="module")
def network():
    module = build(tiny(network="encoder"))
    return module, random_params(module)


def logits(network, tokens_BT, edits):
    module, params = network
    return np.asarray(_edited(module, params, tokens_BT, edits))


def test_without_edits_the_program_is_that_of_a_network_without_places(monkeypatch):
    def program(**collections):
        module = build(tiny(layers="unroll"))
        apply = lambda params, tokens_BT: module.apply({"params": params, **collections}, tokens_BT)  # noqa: E731
        return jax.jit(apply).lower(random_params(module), TOKENS_BT).as_text()

    edit = Edit(jnp.zeros((2, 1, 1, 1)), jnp.ones((2, 1, 1, 16)))
    with_places, changed = program(), program(edits={"layers": {"residual/after": edit}})
    monkeypatch.setattr(transformer, "tap", lambda module, name, value: value)
    assert program() == with_places
    assert changed != with_places


def test_an_edit_that_keeps_all_changes_nothing(network):
    edit = Edit(jnp.ones((2, 1, 1, 1)), jnp.zeros((2, 1, 1, 1)))
    same_BTV = logits(network, TOKENS_BT, dict.fromkeys(RESIDUAL, edit) | {HEADS[0]: without_heads(2, 4, [])})
    np.testing.assert_allclose(same_BTV, logits(network, TOKENS_BT, {}), atol=1e-6)


@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_all_vectors_of_another_run_at_a_place_give_the_other_run(layers):
    module = build(tiny(network="encoder", layers=layers))
    params = random_params(module)
    theirs = record(module, params, OTHER_BT, RESIDUAL)
    for name in RESIDUAL:
        edit = Edit(jnp.zeros((2, 1, 1, 1)), theirs[name])
        changed_BTV = logits((module, params), TOKENS_BT, {name: edit})
        np.testing.assert_allclose(changed_BTV, theirs["logits"], atol=1e-5)


def test_what_is_recorded_is_what_went_on(network):
    module, params = network
    edits = {"layers": {"residual/after": Edit(jnp.full((2, 1, 1, 1), 2.0), jnp.zeros((2, 1, 1, 1)))}}
    apply = jax.jit(lambda variables: module.apply(variables, TOKENS_BT, mutable=["intermediates"]))
    seen = apply({"params": params, "edits": edits})[1]
    places = seen["intermediates"]["layers"]
    np.testing.assert_array_equal(places["residual/before"][1], places["residual/after"][0])
    plain = record(module, params, TOKENS_BT, ("layers/residual/after",))["layers/residual/after"]
    np.testing.assert_allclose(places["residual/after"][0], 2 * plain[0], rtol=1e-6)


@pytest.mark.parametrize("place", ["before", "after"])
def test_each_patch_is_a_run_with_that_vector_of_the_other(network, place):
    module, params = network
    name = f"layers/residual/{place}"
    patched_LSBV = np.asarray(patch_everywhere(module, params, TOKENS_BT, OTHER_BT, AT, name))
    assert patched_LSBV.shape == (2, 7, 2, 32)
    ours, theirs = (np.asarray(record(module, params, tokens_BT, (name,))[name]) for tokens_BT in (TOKENS_BT, OTHER_BT))
    for layer, token in ((0, 2), (1, 2), (1, AT)):
        changed = ours.copy()
        changed[layer, :, token] = theirs[layer, :, token]
        keep = np.ones((2, 1, 1, 1), np.float32)
        keep[layer] = 0  # What the other layer computes follows from it.
        expected_BTV = logits(network, TOKENS_BT, {name: Edit(jnp.array(keep), jnp.array(changed * (1 - keep)))})
        np.testing.assert_allclose(patched_LSBV[layer, token], expected_BTV[:, AT], atol=1e-5)


def test_a_vector_that_enters_the_first_layer_is_the_token_itself(network):
    module, params = network
    patched_LSBV = patch_everywhere(module, params, TOKENS_BT, OTHER_BT, AT, "layers/residual/before")
    for token in range(7):
        mixed_BT = TOKENS_BT.copy()
        mixed_BT[:, token] = OTHER_BT[:, token]
        np.testing.assert_allclose(patched_LSBV[0, token], logits(network, mixed_BT, {})[:, AT], atol=1e-5)


def test_after_the_last_layer_only_the_token_itself_matters(network):
    module, params = network
    patched_LSBV = np.asarray(patch_everywhere(module, params, TOKENS_BT, OTHER_BT, AT))
    plain_BV = logits(network, TOKENS_BT, {})[:, AT]
    for token in range(7):
        assert np.allclose(patched_LSBV[1, token], plain_BV, atol=1e-5) == (token != AT)


@pytest.mark.parametrize("kind", ["gqa", "latent", "linear", "delta"])
def test_a_silenced_head_reads_as_if_its_output_weights_were_zero(kind):
    module = build(tiny(attention=kind))
    params = random_params(module)
    off = [(0, 1), (1, 3)]
    kernel_LNHD = np.array(params["layers"]["attention"]["output"]["kernel"])
    for layer, head in off:
        kernel_LNHD[layer, head] = 0
    layers = params["layers"]
    attention = layers["attention"] | {"output": layers["attention"]["output"] | {"kernel": jnp.asarray(kernel_LNHD)}}
    expected_BTV = logits((module, params | {"layers": layers | {"attention": attention}}), TOKENS_BT, {})
    edit = {"layers/attention/heads": without_heads(2, 4, off)}
    np.testing.assert_allclose(logits((module, params), TOKENS_BT, edit), expected_BTV, atol=1e-5)
    assert np.abs(logits((module, params), TOKENS_BT, {}) - expected_BTV).max() > 0.01
    np.testing.assert_allclose(record(module, params, TOKENS_BT, edits=edit)["logits"], expected_BTV, atol=1e-4)


def test_heads_of_a_translator_are_silenced_in_each_of_its_kinds_of_attention():
    module = build(tiny(network="encoder_decoder"))
    params = random_params(module)
    source = Source.of(jnp.asarray(OTHER_BT))
    plain = record(module, params, TOKENS_BT, HEADS, source)
    every = [(layer, head) for layer in range(2) for head in range(4)]
    for place in (*HEADS, "encoder/layers/attention/heads"):
        edits = {place: without_heads(2, 4, every)}
        found = record(module, params, TOKENS_BT, (place,), source, edits)
        assert not np.any(found[place])
        assert np.abs(found["logits"] - plain["logits"]).max() > 0.01


def test_places_that_cannot_be_edited_are_refused(network):
    module, params = network
    nothing = Edit(jnp.zeros(1), jnp.zeros(1))
    with pytest.raises(
        KeyError, match=r"attention/wieghts cannot be edited in this network; these can: .*attention/weig"
    ):
        edited(module, params, TOKENS_BT, {"layers/attention/wieghts": nothing})
    with pytest.raises(KeyError, match="these can: embedded, final, layers/lstm/cell"):
        edited(build(tiny(network="lstm")), params, TOKENS_BT, {"layers/attention/heads": nothing})
    with pytest.raises(ValueError, match=r"\(2, 7\) and \(2, 6\)"):
        patch_everywhere(module, params, TOKENS_BT, OTHER_BT[:, :6], AT)
