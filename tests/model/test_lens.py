"""Looking inside: what is recorded is what was computed, and when nobody looks it costs nothing."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from tiny import random_params, random_tokens, tiny

from configs import schema
from model import attention, build, decoder, layers, transformer
from model.lens import weights
from model.lens.knockout import knock_out_heads
from model.lens.places import HEADS, INTERMEDIATES, Part, without_heads
from model.lens.record import record
from model.sharding import batch_sharding, make_mesh, param_shardings
from model.source import Source

PLACES = {
    "layers/attention/weights": (3, 2, 4, 7, 7),
    "layers/attention/scores": (3, 2, 4, 7, 7),
    "layers/attention/query": (3, 2, 7, 4, 4),
    "layers/attention/key": (3, 2, 7, 2, 4),
    "layers/attention/value": (3, 2, 7, 2, 4),
    "layers/feed_forward/hidden": (3, 2, 7, 48),
    "layers/attention/heads": (3, 2, 7, 4, 4),
    "layers/residual/before": (3, 2, 7, 16),
    "layers/residual/middle": (3, 2, 7, 16),
    "layers/residual/after": (3, 2, 7, 16),
    "layers/attention/out_per_head": (3, 2, 7, 4, 16),
    "layers/added/attention": (3, 2, 7, 16),
    "layers/added/feed_forward": (3, 2, 7, 16),
    "final": (2, 7, 16),
}
TOKENS_BT = random_tokens(2, 7)


@pytest.fixture(scope="module")
def seen():
    """A network, its parameters, and all that can be seen of it."""
    module = build(tiny(num_layers=3, kernel="fused"))
    params = random_params(module)
    return module, params, {name: np.asarray(x) for name, x in record(module, params, TOKENS_BT, tuple(PLACES)).items()}


def test_every_place_has_its_shape(seen):
    assert {name: value.shape for name, value in seen[2].items()} == {**PLACES, "logits": (2, 7, 32)}


def test_recorded_weights_are_a_distribution_over_what_came_before(seen):
    weights_LBNTS = seen[2]["layers/attention/weights"]
    assert weights_LBNTS.dtype == np.float32
    np.testing.assert_allclose(weights_LBNTS.sum(-1), 1, atol=1e-6)
    assert not np.triu(weights_LBNTS, 1).any()


def test_recorded_weights_average_the_values_into_what_attention_adds(seen):
    _, params, found = seen
    layers = jax.tree.map(np.asarray, params["layers"])
    for layer in range(3):
        before_BTD = found["layers/residual/before"][layer]
        rms = np.sqrt((before_BTD**2).mean(-1, keepdims=True) + 1e-6)
        normed_BTD = before_BTD / rms * layers["attention_norm"]["scale"][layer]
        value_BSKH = np.einsum("BSD,DKH->BSKH", normed_BTD, layers["attention"]["value"]["kernel"][layer])
        value_BSNH = np.repeat(value_BSKH, 2, axis=2)
        read_BTNH = np.einsum("BNTS,BSNH->BTNH", found["layers/attention/weights"][layer], value_BSNH)
        added_BTD = np.einsum("BTNH,NHD->BTD", read_BTNH, layers["attention"]["output"]["kernel"][layer])
        np.testing.assert_allclose(found["layers/residual/middle"][layer] - before_BTD, added_BTD, atol=1e-4)


def test_recorded_scores_become_the_weights_by_softmax(seen):
    scores, weights = seen[2]["layers/attention/scores"], seen[2]["layers/attention/weights"]
    exp = np.exp(scores - scores.max(-1, keepdims=True)) * np.tril(np.ones((7, 7)))
    np.testing.assert_allclose(exp / exp.sum(-1, keepdims=True), weights, atol=1e-5)


def test_the_residual_stream_goes_from_layer_to_layer(seen):
    found = seen[2]
    np.testing.assert_array_equal(found["layers/residual/before"][1:], found["layers/residual/after"][:-1])
    embedded = np.asarray(seen[1]["embedding"]["embedding"])[TOKENS_BT]
    np.testing.assert_array_equal(found["layers/residual/before"][0], embedded)


def test_recording_does_not_change_the_logits(seen):
    module, params, found = seen
    logits = jax.jit(module.apply)({"params": params}, TOKENS_BT)
    np.testing.assert_allclose(found["logits"], logits, atol=1e-4)


def test_an_unknown_place_is_refused_with_those_there_are(seen):
    module, params, _ = seen
    with pytest.raises(KeyError) as error:
        record(module, params, TOKENS_BT, ("layers/attention/wieghts",))
    assert "layers/attention/wieghts" in str(error.value)
    assert all(name in str(error.value) for name in PLACES)


def test_recorded_weights_of_sinks_and_unrolled_layers_are_those_of_the_forward_pass():
    module = build(tiny(attention_sinks=True, layers="unroll", remat="full"))
    params = random_params(module)
    shares = np.asarray(record(module, params, TOKENS_BT)["layers/attention/weights"]).sum(-1)
    assert np.all(shares < 1)
    assert shares.shape == (2, 2, 4, 7)


@pytest.mark.parametrize("kernel", ["dense", "fused"])
def test_places_leave_no_trace_in_the_program_when_nobody_looks(monkeypatch, kernel):
    def program(**options):
        # A new function each time, so that JAX traces it anew.
        module = build(tiny(kernel=kernel, layers="unroll"))
        apply = lambda params, tokens_BT: module.apply({"params": params}, tokens_BT, **options)  # noqa: E731
        return jax.jit(apply).lower(random_params(module), TOKENS_BT).as_text()

    with_places, recorded = program(), program(mutable=[INTERMEDIATES])
    for module in (attention, decoder, layers, transformer):
        monkeypatch.setattr(module, "tap", lambda module, name, value: value)
    assert program() == with_places
    assert recorded != with_places


def test_part_of_what_is_recorded_is_that_part():
    module = build(tiny(num_layers=3, position="relative", attention_sinks=True, window=4))
    params = random_params(module)
    what = ("layers/attention/weights", "layers/residual/middle")
    whole = {name: np.asarray(value) for name, value in record(module, params, TOKENS_BT, what).items()}
    weights_LBNTS = whole[what[0]]

    part = record(module, params, TOKENS_BT, what, part=Part(layers=(2, 0), positions=(5, -1), mean=True))
    np.testing.assert_allclose(part[what[0]], weights_LBNTS[[2, 0]].mean(1)[:, :, [5, 6]], atol=1e-5)
    np.testing.assert_allclose(part[what[1]], whole[what[1]][[2, 0]].mean(1)[:, [5, 6]], atol=1e-4)
    np.testing.assert_allclose(part["logits"], whole["logits"][:, [5, 6]], atol=1e-4)

    most = record(module, params, TOKENS_BT, what[:1], part=Part(top=2, logits=False))
    assert most.keys() == {what[0], f"{what[0]}/keys"}
    np.testing.assert_allclose(most[what[0]], np.sort(weights_LBNTS)[..., :-3:-1], atol=1e-5)
    found = np.take_along_axis(weights_LBNTS, np.asarray(most[f"{what[0]}/keys"]), axis=-1)
    np.testing.assert_allclose(found, most[what[0]], atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [{"logit_softcap": 5.0, "logit_scale": 3.0, "tied_embeddings": False}, {"network": "lstm"},
     {"network": "encoder_decoder"}, {"network": "lstm_encoder_decoder", "num_layers": 1}],
    ids=lambda settings: settings.get("network", "decoder"),
)  # fmt: skip
def test_of_chosen_tokens_there_are_their_logits(settings):
    module = build(tiny(**settings))
    params = random_params(module)
    source = Source.of(random_tokens(2, 5)) if "encoder" in settings.get("network", "") else None
    whole = jax.jit(module.apply)({"params": params}, TOKENS_BT, source=source)
    part = record(module, params, TOKENS_BT, (), source, part=Part(positions=(4, -1)))
    np.testing.assert_allclose(part["logits"], whole[:, [4, 6]], rtol=1e-4, atol=1e-5)


def test_the_largest_weights_are_found_block_by_block(monkeypatch):
    monkeypatch.setattr(weights, "AT_ONCE", 2 * 4 * 7 * 3)  # Three queries at a time, of seven.
    module = build(tiny(position="alibi"))
    params = random_params(module)
    name = "layers/attention/weights"
    most = record(module, params, TOKENS_BT, (name,), part=Part(top=7))
    whole = record(module, params, TOKENS_BT, (name,))
    np.testing.assert_allclose(most[name], np.sort(whole[name])[..., ::-1], atol=1e-5)
    np.testing.assert_allclose(most["logits"], whole["logits"], atol=1e-4)
    monkeypatch.setattr(weights, "LARGE", 1)  # Nor are those made that nobody asked for.
    few = record(module, params, TOKENS_BT, (name,), part=Part(positions=(3,)))
    np.testing.assert_allclose(few[name][:, :, :, 0], whole[name][:, :, :, 3], atol=1e-5)
    np.testing.assert_allclose(few["logits"][:, 0], whole["logits"][:, 3], atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [{"norm": "layer", "tied_embeddings": False}, pytest.param({"dtype": "bfloat16"}, marks=pytest.mark.slow)],
)
def test_on_a_mesh_all_is_recorded_and_edited_as_on_one_device(settings):
    module = build(tiny(**settings))
    params = random_params(module)
    what = ("layers/attention/weights", "layers/residual/after")
    edits = {HEADS[0]: without_heads(2, 4, [(0, 1), (1, 3)])}
    alone = record(module, params, TOKENS_BT, what, edits=edits)
    mesh = make_mesh(schema.Mesh(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        spread = jax.device_put(params, param_shardings(module, mesh))
        tokens_BT = jax.device_put(np.concatenate([TOKENS_BT] * 2), batch_sharding(mesh))
        together = record(module, spread, tokens_BT, what, edits=edits)
        changes_LNB = knock_out_heads(module, spread, tokens_BT)
    precision = 0.04 if "dtype" in settings else 1e-5
    for name, value in alone.items():
        value, both = np.asarray(value, np.float32), np.asarray(together[name], np.float32)
        half = both[:2] if name == "logits" else both[:, :2]
        np.testing.assert_allclose(half, value, atol=precision * np.abs(value).max(), err_msg=name)
    alone_LNB = np.asarray(knock_out_heads(module, params, TOKENS_BT))
    np.testing.assert_allclose(changes_LNB[..., :2], alone_LNB, atol=5 * precision * np.abs(alone_LNB).max())
