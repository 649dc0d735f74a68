"""Latent attention: against its formulas in float64, in both ways to compute it, and decoding from its cache."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from caching import decode_from_cache
from tiny import random_params, random_tokens, tiny

from configs import schema
from configs.check import check
from configs.schema import ConfigError
from model import build, latent, sharding
from model.generate.cache import empty_cache
from model.latent import LatentAttention
from model.lens.record import record
from model.transformer import find_places

B, T, D, N, H, R, P, Q = 2, 9, 16, 4, 4, 10, 6, 5
WIDTHS = {"attention": "latent", "num_kv_heads": 0, "latent_width": R, "latent_rope_width": P, "query_latent_width": Q}


def layer(**settings):
    """One layer's module, parameters, input and the function of the two, with two texts packed into the second row."""
    config = tiny(**{**WIDTHS, **settings})
    module = LatentAttention(config)
    x_BTD = np.random.default_rng(1).normal(size=(B, T, D)).astype(np.float32)
    positions_BT = np.array([[*range(T)], [*range(4), *range(T - 4)]], np.int32)
    segments_BT = np.array([[1] * T, [1] * 4 + [2] * (T - 4)], np.int32)
    places = find_places(config, positions_BT, segments_BT, np.arange(B))
    window = jnp.int32(config.model.window)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x_BTD, places, window))["params"]
    random = np.random.default_rng(2)
    params = jax.tree.map(lambda leaf: (0.4 * random.normal(size=leaf.shape)).astype(leaf.dtype), shapes)
    return params, x_BTD, lambda params, x_BTD: module.apply({"params": params}, x_BTD, places, window)


def turned(x_BTP, positions_BT):
    """Rotary positions by complex numbers."""
    half = x_BTP.shape[-1] // 2
    angle = positions_BT[..., None] * 10_000.0 ** (-np.arange(half) / half)
    if x_BTP.ndim == 4:
        angle = angle[:, :, None]
    z = (x_BTP[..., :half] + 1j * x_BTP[..., half:]) * np.exp(1j * angle)
    return np.concatenate([z.real, z.imag], -1)


def written_out(params, x_BTD, window=0):
    """The layer in float64, head by head in no hurry."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(name, x):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p[name]["scale"]

    positions_BT = np.array([[*range(T)], [*range(4), *range(T - 4)]])
    text_BT = np.array([[1] * T, [1] * 4 + [2] * (T - 4)])
    x = x_BTD.astype(np.float64)
    query = np.einsum("BTQ,QNH->BTNH", norm("query_latent_norm", x @ p["query_latent"]["kernel"]), p["query"]["kernel"])
    small = norm("latent_norm", x @ p["latent"]["kernel"])
    key = np.einsum("BTR,RNH->BTNH", small, p["key"]["kernel"])
    value = np.einsum("BTR,RNH->BTNH", small, p["value"]["kernel"])
    shared = turned(x @ p["key_rotated"]["kernel"], positions_BT)
    scores = np.einsum("BTNH,BSNH->BNTS", query[..., :H], key)
    scores = scores + np.einsum("BTNP,BSP->BNTS", turned(query[..., H:], positions_BT), shared)
    scores = scores / np.sqrt(H + P)
    seen = (text_BT[:, :, None] == text_BT[:, None]) & np.tril(np.ones((T, T), bool))
    if window:
        seen &= np.arange(T)[:, None] - np.arange(T) < window
    weights = np.where(seen[:, None], np.exp(scores), 0)
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("BNTS,BSNH,NHD->BTD", weights, value, p["output"]["kernel"])


@pytest.mark.parametrize("absorbs", [False, True])
@pytest.mark.parametrize("settings", [{}, {"window": 3}, {"kernel": "fused"}])
def test_both_ways_to_compute_it_are_its_formulas(monkeypatch, absorbs, settings):
    monkeypatch.setattr(latent, "absorbing_is_cheaper", lambda *_: absorbs)
    params, x_BTD, apply = layer(**settings)
    expected = written_out(params, x_BTD, settings.get("window", 0))
    np.testing.assert_allclose(jax.jit(apply)(params, x_BTD), expected, atol=1e-5 * np.abs(expected).max())


def test_both_ways_to_compute_it_have_the_same_gradients(monkeypatch):
    gradients = []
    for absorbs in (False, True):
        monkeypatch.setattr(latent, "absorbing_is_cheaper", lambda *_, absorbs=absorbs: absorbs)
        params, x_BTD, apply = layer()
        gradients.append(
            jax.jit(jax.grad(lambda *inputs, apply=apply: jnp.sum(jnp.sin(apply(*inputs)))))(params, x_BTD)
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), *gradients)


def test_one_token_after_many_is_absorbed_and_a_whole_text_is_not():
    assert latent.absorbing_is_cheaper(queries=1, keys=1024, latent=512, head=128)
    assert not latent.absorbing_is_cheaper(queries=1024, keys=1024, latent=512, head=128)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"layers": "unroll", "position": "none", "query_latent_width": 0},
        {"window": 3, "window_pattern": "LG", "rope_local_base": 100.0, "biases": True, "attention_sinks": True},
        {"position": "alibi", "attention_softcap": 3.0},
    ],
)
def test_decoding_from_the_cache_is_the_full_pass(settings):
    decode_from_cache(build(tiny(**{**WIDTHS, **settings})))


def test_cache_holds_the_latent_and_the_rotated_key_and_nothing_else():
    cache = empty_cache(tiny(**WIDTHS), 3, 7)["layers"]["attention"]
    assert jax.tree.map(jnp.shape, cache) == {"latent": (2, 3, 7, R), "rotated": (2, 3, 7, P)}
    # By default it is smaller than two heads' keys and values; all heads have N.
    numbers = {}
    for attention in ("latent", "mha"):
        leaves = jax.tree.leaves(empty_cache(tiny(attention=attention, num_kv_heads=0, num_heads=16, width=64), 1, 1))
        numbers[attention] = sum(leaf.size for leaf in leaves)
    assert numbers["latent"] / numbers["mha"] == 4.5 / 32


def test_recorded_weights_add_up_to_one_over_what_may_be_seen():
    module = build(tiny(**WIDTHS, window=3))
    weights_BNTS = record(module, random_params(module), random_tokens(2, 8))["layers/attention/weights"][0]
    np.testing.assert_allclose(weights_BNTS.sum(-1), 1, atol=1e-5)
    distance_TS = np.arange(8)[:, None] - np.arange(8)
    np.testing.assert_array_equal(weights_BNTS[0, 0] > 0, (distance_TS >= 0) & (distance_TS < 3))


def test_eight_devices_compute_what_one_computes():
    module = build(tiny(**{**WIDTHS, "query_latent_width": 4, "num_layers": 1}))
    params, tokens_BT = random_params(module), random_tokens(8, 7)
    loss = lambda params, tokens_BT: jnp.mean(jnp.sin(module.apply({"params": params}, tokens_BT)))  # noqa: E731
    expected = jax.jit(jax.grad(loss))(params, tokens_BT)
    on = sharding.make_mesh(schema.Mesh(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(on):
        placed = jax.device_put(params, sharding.param_shardings(module, on))
        found = jax.jit(jax.grad(loss))(placed, jax.device_put(tokens_BT, sharding.batch_sharding(on)))
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest, rtol=1e-4), found, expected)


def test_bfloat16_computes_nearly_what_float32_computes():
    exact, rounded = (build(tiny(**WIDTHS, dtype=dtype)) for dtype in ("float32", "bfloat16"))
    params, tokens_BT = random_params(exact), random_tokens(2, 8)
    expected, found = (jax.jit(module.apply)({"params": params}, tokens_BT) for module in (exact, rounded))
    assert 1e-4 < np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.05


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"latent_rope_width": 3}, "--model.latent_rope_width=3 is odd"),
        ({"rope_fraction": 0.5}, "--model.rope_fraction=0.5"),
        ({"qk_norm": "head"}, "--model.qk_norm=head"),
        ({"qkv_biases": True}, "--model.qkv_biases=True"),
    ],
)
def test_settings_that_it_has_no_use_for_are_refused(setting, words):
    with pytest.raises(ConfigError, match=words):
        check(tiny(**{**WIDTHS, **setting}))
    check(tiny(**WIDTHS))
    with pytest.raises(ConfigError, match=r"--model.latent_width: 10 \(10\) cannot be shared"):
        sharding.check_divisible(tiny(**WIDTHS), sharding.make_mesh(schema.Mesh(data=2, fsdp=4)))
