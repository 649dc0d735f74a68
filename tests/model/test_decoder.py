"""What must hold of the network whatever its settings: who depends on whom, and what changes nothing."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import VOCABULARY, random_params, random_tokens, tiny

from configs.presets import preset
from model import build
from model.attention import Attention, Places
from model.lens.places import INTERMEDIATES
from model.lens.record import record
from model.masks import Sight
from model.sharding import parameter_shapes

SCHEMES = ("rope", "learned", "sinusoidal", "alibi", "none")
T = 8


def reach(**settings):
    """How strongly the logits at t depend on the token at s, [T,T], as absolute gradients."""
    # Untied, and token s only at place s: the gradient of row s of the table is that of input s.
    module = build(tiny(tied_embeddings=False, **settings))
    params = random_params(module)
    mix_TV = np.random.default_rng(1).normal(size=(T, VOCABULARY)).astype(np.float32)

    @jax.jit
    @jax.jacfwd
    def jacobian(change_SD):
        table_VD = params["embedding"]["embedding"].at[:T].add(change_SD)
        changed = {**params, "embedding": {"embedding": table_VD}}
        return jnp.sum(module.apply({"params": changed}, jnp.arange(T)[None])[0] * mix_TV, axis=-1)

    return np.abs(jacobian(jnp.zeros((T, 16)))).sum(-1)


@pytest.mark.parametrize("position", SCHEMES)
def test_no_output_depends_on_a_later_token(position):
    gradient_TS = reach(position=position)
    assert not np.triu(gradient_TS, 1).any()
    assert np.all(gradient_TS[np.tril_indices(T)] > 0)


@pytest.mark.parametrize(("pattern", "farthest"), [("L", 4), ("LG", T)])
def test_stacked_windows_reach_as_far_as_they_add_up_to(pattern, farthest):
    gradient_TS = reach(window=3, window_pattern=pattern)
    distance_TS = np.arange(T)[:, None] - np.arange(T)
    np.testing.assert_array_equal(gradient_TS > 0, (distance_TS >= 0) & (distance_TS <= farthest))


def test_each_layer_has_the_window_that_the_pattern_gives_it():
    module = build(tiny(num_layers=5, window=3, window_pattern="LGL"))
    weights_LBNTS = record(module, random_params(module), random_tokens(2, T))["layers/attention/weights"]
    distance_TS = np.arange(T)[:, None] - np.arange(T)
    for weights_BNTS, letter in zip(np.asarray(weights_LBNTS), "LGLLG", strict=True):
        visible_TS = (distance_TS >= 0) & ((distance_TS < 3) | (letter == "G"))
        np.testing.assert_array_equal(weights_BNTS > 0, np.broadcast_to(visible_TS, weights_BNTS.shape))


@pytest.mark.parametrize("position", SCHEMES)
def test_documents_packed_into_one_row_do_not_see_each_other(position):
    module = build(tiny(position=position))
    params, tokens_T = random_params(module), random_tokens(T)
    # Packed; and each alone, at the start of a row, where what follows cannot be seen.
    tokens_3T = np.stack([tokens_T, tokens_T, np.roll(tokens_T, -5)])
    positions_3T = np.array([[*range(5), *range(3)], [*range(T)], [*range(T)]])
    segments_3T = np.array([[1] * 5 + [2] * 3, [1] * T, [1] * T])
    packed_TV, first_TV, second_TV = jax.jit(module.apply)({"params": params}, tokens_3T, positions_3T, segments_3T)
    np.testing.assert_allclose(packed_TV[:5], first_TV[:5], atol=1e-4)
    np.testing.assert_allclose(packed_TV[5:], second_TV[:3], atol=1e-4)
    assert np.abs(packed_TV[5:] - first_TV[5:]).max() > 0.1  # One document would have seen more.


def test_attention_without_positions_sees_a_set():
    module = Attention(tiny(position="none"))
    x_BTD = np.random.default_rng(0).normal(size=(1, T, 16)).astype(np.float32)
    order = np.random.default_rng(1).permutation(T)
    params = jax.tree.map(lambda p: p[0], random_params(build(tiny()))["layers"]["attention"])

    @partial(jax.jit, static_argnames="causal")
    def attend(x_BTD, causal=False):
        real_BT, places_BT = jnp.ones((1, T), bool), jnp.arange(T)[None]
        places = Places(places_BT, ~real_BT, real_BT, jnp.arange(1), Sight(places_BT, places_BT, causal=causal))
        return module.apply({"params": params}, x_BTD, places, 0)

    np.testing.assert_allclose(attend(x_BTD[:, order]), attend(x_BTD)[:, order], atol=1e-5)
    assert np.abs(attend(x_BTD[:, order], causal=True) - attend(x_BTD, causal=True)[:, order]).max() > 0.1


@pytest.mark.parametrize("position", ["none", "rope"])
def test_one_layer_tells_the_order_of_earlier_tokens_only_by_positions(position):
    module = build(tiny(num_layers=1, position=position))
    params, tokens_BT = random_params(module), random_tokens(1, T)
    shuffled_BT = np.concatenate([tokens_BT[:, :-1][:, ::-1], tokens_BT[:, -1:]], axis=1)
    last_BV = jax.jit(module.apply)({"params": params}, np.concatenate([tokens_BT, shuffled_BT]))[:, -1]
    assert (np.abs(last_BV[0] - last_BV[1]).max() < 1e-4) == (position == "none")


def loss_of(module):
    tokens_BT = random_tokens(2, T)

    def loss(params):
        logits_BTV = module.apply({"params": params}, tokens_BT)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), tokens_BT[..., None], -1))

    return loss


def assert_same_loss_and_gradients(module, params, expected):
    found = jax.jit(jax.value_and_grad(loss_of(module)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-4), found, expected)


VARIED = {"num_layers": 3, "window": 3, "window_pattern": "LG", "position": "alibi"}


@pytest.fixture(scope="module")
def scanned():
    """Parameters, and loss and gradients of the scanned network without remat."""
    module = build(tiny(**VARIED))
    params = random_params(module)
    return params, jax.jit(jax.value_and_grad(loss_of(module)))(params)


def test_unrolled_layers_compute_what_scanned_layers_compute(scanned):
    assert_same_loss_and_gradients(build(tiny(**VARIED, layers="unroll")), *scanned)


def test_unrolled_layers_are_no_loop_and_scanned_layers_are():
    for layers, loops in (("scan", True), ("unroll", False)):
        module = build(tiny(layers=layers))
        program = jax.jit(loss_of(module)).lower(parameter_shapes(module)).as_text()
        assert ("stablehlo.while" in program) == loops


@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_parameters_have_one_layout_however_layers_are_looped(layers):
    shapes = parameter_shapes(build(tiny(num_layers=3, layers=layers)))
    expected = parameter_shapes(build(tiny(num_layers=3, remat="full")))
    assert jax.tree.leaves_with_path(shapes) == jax.tree.leaves_with_path(expected)
    assert shapes["layers"]["attention"]["query"]["kernel"].shape == (3, 16, 4, 4)


def test_dropout_follows_its_key_and_is_off_when_deterministic():
    module, sure = build(tiny(dropout=0.3)), build(tiny())
    params, tokens_BT = random_params(module), random_tokens(2, T)

    @jax.jit
    def dropped(key):
        return module.apply({"params": params}, tokens_BT, deterministic=False, rngs={"dropout": key})

    one, again, other = (dropped(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.1
    plain, expected = (jax.jit(m.apply)({"params": params}, tokens_BT) for m in (module, sure))
    np.testing.assert_array_equal(plain, expected)


def test_dropout_drops_its_share_of_each_sublayer_with_another_mask_in_each_layer():
    module = build(tiny(dropout=0.3, width=64))
    params, tokens_BT = random_params(module), random_tokens(8, T)

    @jax.jit
    def run(key):
        options = {"deterministic": False, "rngs": {"dropout": key}, "mutable": [INTERMEDIATES]}
        return module.apply({"params": params}, tokens_BT, **options)[1][INTERMEDIATES]["layers"]

    found = run(jax.random.key(0))
    residual, middle = found["residual/before"], found["residual/middle"]
    zero_LBTD = np.asarray(residual == middle)  # What attention adds.
    np.testing.assert_allclose(zero_LBTD.mean((1, 2, 3)), 0.3, atol=0.03)
    np.testing.assert_allclose((zero_LBTD[0] & zero_LBTD[1]).mean(), 0.09, atol=0.03)
    embedded = np.asarray(residual[0]) == 0
    np.testing.assert_allclose(embedded.mean(), 0.3, atol=0.03)


def parameter_count(config):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(parameter_shapes(build(config))))


def test_presets_have_exactly_the_parameters_of_the_published_models():
    assert parameter_count(preset("gpt2_small")) == 124_439_808
    assert parameter_count(preset("llama3_8b")) == 8_030_261_248


def test_number_of_parameters_is_the_closed_form():
    V, D, L, N, K, H, F = VOCABULARY, 16, 2, 4, 2, 6, 10
    config = tiny(head_width=H, feed_forward_width=F, qk_norm="head", attention_sinks=True, tied_embeddings=False)
    block = 2 * D * N * H + 2 * D * K * H + 2 * H + N + 3 * D * F + 2 * D
    assert parameter_count(config) == L * block + 2 * V * D + D


def test_softcaps_bound_scores_and_logits():
    module = build(tiny(attention_softcap=0.5, logit_softcap=2.0))
    params = jax.tree.map(lambda p: 20 * p, random_params(module))
    found = record(module, params, random_tokens(2, T), ("layers/attention/scores",))
    for name, cap in (("layers/attention/scores", 0.5), ("logits", 2.0)):
        largest = np.abs(found[name]).max()
        assert 0.9 * cap < largest <= cap


def test_tied_output_layer_is_the_embedding_transposed():
    tied, untied = (build(tiny(tied_embeddings=tied)) for tied in (True, False))
    params = random_params(tied)
    assert "output" not in params
    transposed = {**params, "output": {"kernel": params["embedding"]["embedding"].T}}
    ours, theirs = (
        jax.jit(m.apply)({"params": p}, random_tokens(2, T)) for m, p in ((tied, params), (untied, transposed))
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("kernel", ["dense", "fused"])
def test_bfloat16_computes_nearly_what_float32_computes(kernel):
    settings = {"attention": "mha", "biases": True, "qk_norm": "head", "kernel": kernel}
    exact = build(tiny(**settings))
    params, tokens_BT = random_params(exact), random_tokens(2, T)
    expected = jax.jit(exact.apply)({"params": params}, tokens_BT)
    with jax.numpy_dtype_promotion("strict" if kernel == "dense" else "standard"):  # JAX's own code mixes dtypes.
        found = jax.jit(build(tiny(**settings, dtype="bfloat16")).apply)({"params": params}, tokens_BT)
    assert found.dtype == "float32"
    relative = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 1e-4 < relative < 0.03


def test_parameters_are_stored_as_asked():
    config = tiny(
        param_dtype="bfloat16", biases=True, norm="layer", position="learned", qk_norm="head", attention_sinks=True,
        tied_embeddings=False,
    )  # fmt: skip
    assert {leaf.dtype for leaf in jax.tree.leaves(parameter_shapes(build(config)))} == {jnp.dtype("bfloat16")}


def test_networks_of_equal_configs_are_equal_so_that_compiled_programs_are_found_again():
    config = tiny()
    assert build(config) == build(dataclasses.replace(config))
    assert hash(build(config)) == hash(build(tiny()))
