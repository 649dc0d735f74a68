"""Linear attention and the gated delta rule: against their recurrences in float64, and decoding from their states."""

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
from model import build, chunks, sharding
from model.generate.cache import empty_cache
from model.lens.record import record
from model.linear import Convolution

B, T, N, H = 3, 23, 2, 8
BEGINS_BT = np.zeros((B, T), bool)
BEGINS_BT[:, 0] = True
BEGINS_BT[1, 9] = BEGINS_BT[2, 4] = BEGINS_BT[2, 16] = True


def drawn(seed=0):
    """Queries, keys of length 1, values, strengths and log decays."""
    random = np.random.default_rng(seed)
    query, key, value = random.normal(size=(3, B, T, N, H))
    key /= np.linalg.norm(key, axis=-1, keepdims=True)
    strength_BTN, log_decay_BTN = random.uniform(size=(B, T, N)), -random.exponential(0.3, size=(B, T, N))
    return tuple(x.astype(np.float32) for x in (query, key, value, strength_BTN, log_decay_BTN))


def recurrence(query, key, value, strength, log_decay, begins, state):
    """The gated delta rule token by token, as it is defined, in float64; without strengths, linear attention."""
    query, key, value, state = (np.asarray(x, np.float64) for x in (query, key, value, state))
    state, read = state.copy(), np.zeros(value.shape)
    for b, t, n in np.ndindex(query.shape[:3]):
        q, k, v = query[b, t, n], key[b, t, n], value[b, t, n]
        before = np.zeros_like(state[b, n]) if begins[b, t] else state[b, n]
        if strength is None:
            state[b, n] = before + np.outer(k, v)
        else:
            beta, alpha = float(strength[b, t, n]), np.exp(float(log_decay[b, t, n]))
            state[b, n] = alpha * (np.eye(len(k)) - beta * np.outer(k, k)) @ before + beta * np.outer(k, v)
        read[b, t, n] = q @ state[b, n]
    return read, state


@pytest.fixture(params=[4, 64])
def chunk(request, monkeypatch):
    """Several chunks, the last of them cut off by the end; or one."""
    monkeypatch.setattr(chunks, "CHUNK", request.param)


def state_before():
    return np.random.default_rng(9).normal(size=(B, N, H, H)).astype(np.float32)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("begins_BT", [BEGINS_BT, np.zeros_like(BEGINS_BT)])
def test_delta_rule_in_chunks_is_its_recurrence(begins_BT):
    inputs, state = drawn(), state_before()
    found = jax.jit(chunks.delta_rule)(*inputs, begins_BT, state)
    for ours, expected in zip(found, recurrence(*inputs, begins_BT, state), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("begins_BT", [BEGINS_BT, np.zeros_like(BEGINS_BT)])
def test_linear_rule_in_chunks_is_its_recurrence(begins_BT):
    query, key, value, _, _ = drawn()
    state = state_before()
    found = jax.jit(chunks.linear_rule)(query, key, value, begins_BT, state)
    for ours, expected in zip(found, recurrence(query, key, value, None, None, begins_BT, state), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.usefixtures("chunk")
def test_gradients_of_the_delta_rule_are_finite_differences_of_its_recurrence():
    inputs, state = drawn(), state_before()
    mix = np.random.default_rng(3).normal(size=(B, T, N, H))
    mix_state = np.random.default_rng(4).normal(size=state.shape)

    def total(*arguments):
        read, last = chunks.delta_rule(*arguments[:5], jnp.asarray(BEGINS_BT), arguments[5])
        return jnp.sum(read * mix.astype(np.float32)) + jnp.sum(last * mix_state.astype(np.float32))

    gradients = jax.jit(jax.grad(total, argnums=tuple(range(6))))(*inputs, state)
    for at, gradient in enumerate(gradients):
        direction = np.random.default_rng(at).normal(size=gradient.shape)
        sums = []
        for step in (1e-5, -1e-5):
            moved = [
                x.astype(np.float64) + (step * direction if i == at else 0) for i, x in enumerate((*inputs, state))
            ]
            read, last = recurrence(*moved[:5], BEGINS_BT, moved[5])
            sums.append((read * mix).sum() + (last * mix_state).sum())
        expected = (sums[0] - sums[1]) / 2e-5
        # Begun texts see nothing of the state; what matters there is that a gradient is not NaN.
        np.testing.assert_allclose((gradient * direction).sum(), expected, rtol=1e-4, atol=1e-3)


def test_steep_decay_over_a_long_text_neither_overflows_nor_has_a_gradient_that_is_not_finite():
    query, key, value, strength, log_decay = drawn()

    def total(steepness):
        read, _ = chunks.delta_rule(query, key, value, strength, steepness * log_decay, BEGINS_BT, state_before())
        return jnp.sum(read)

    assert np.isfinite(jax.jit(jax.grad(total))(jnp.float32(300)))


def test_triangular_matrices_are_inverted_even_where_powers_of_them_would_overflow_precision():
    """64 equal keys: the powers of the matrix grow to 10^17, its inverse has ones."""
    below = np.tril(np.ones((2, 64, 64), np.float32), -1)
    below[1] *= np.random.default_rng(0).uniform(size=(64, 64)).astype(np.float32)
    expected = np.linalg.inv(np.eye(64) + below.astype(np.float64))
    np.testing.assert_allclose(chunks.invert_unit_triangular(below), expected, atol=1e-5)


def test_convolution_sees_its_own_text_only_and_goes_on_where_it_stopped():
    module = Convolution(tiny(attention="delta", convolution=3))
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 9, 3, N, H)).astype(np.float32)
    taps = random.normal(size=(3, 3, N, H)).astype(np.float32)
    begins_BT = np.zeros((2, 9), bool)
    begins_BT[:, 0] = begins_BT[1, 4] = True
    real_BT = np.ones((2, 9), bool)
    expected = np.zeros(x.shape)
    for b, t, back in np.ndindex(2, 9, 3):
        text = np.cumsum(begins_BT[b])
        if t >= back and text[t - back] == text[t]:
            expected[b, t] += taps[2 - back] * x[b, t - back]

    def convolve(*arguments):
        return module.apply({"params": {"taps": taps}}, *arguments)

    nothing = np.zeros((2, 2, 3, N, H), np.float32)
    np.testing.assert_allclose(convolve(x, begins_BT, real_BT, nothing)[0], expected, atol=1e-5)
    # Five tokens of the first row, six of the second, then the rest.
    first, before = convolve(x[:, :6], begins_BT[:, :6], np.arange(6) < np.array([[5], [6]]), nothing)
    np.testing.assert_allclose(first[0, :5], expected[0, :5], atol=1e-5)
    rest = np.stack([x[0, 5:8], x[1, 6:]])
    second, _ = convolve(rest, np.zeros((2, 3), bool), np.ones((2, 3), bool), before)
    np.testing.assert_allclose(second[0], expected[0, 5:8], atol=1e-5)
    np.testing.assert_allclose(second[1], expected[1, 6:], atol=1e-5)


KINDS = [
    {"attention": "linear", "position": "none"},
    {"attention": "linear", "position": "learned", "layers": "unroll", "qk_norm": "head"},
    {"attention": "delta", "position": "none"},
    {"attention": "delta", "position": "none", "layers": "unroll", "biases": True, "convolution": 0},
]


@pytest.mark.parametrize("settings", KINDS)
def test_decoding_from_a_state_is_the_full_pass(settings):
    decode_from_cache(build(tiny(**settings)))


def test_a_state_takes_the_same_room_however_long_the_text():
    for attention in ("linear", "delta"):
        config = tiny(attention=attention, position="none")
        short, long = (jax.tree.map(jnp.shape, empty_cache(config, 2, slots)) for slots in (8, 4096))
        assert short == long


@pytest.mark.parametrize("settings", KINDS[::2])
def test_texts_packed_into_one_row_do_not_see_each_other_and_padding_changes_nothing(settings):
    module = build(tiny(**settings))
    params, tokens_T = random_params(module), random_tokens(8)
    tokens_3T = np.stack([tokens_T, tokens_T, np.roll(tokens_T, -4)])
    positions_3T = np.array([[*range(4), *range(3), 0], [*range(8)], [*range(8)]])
    segments_3T = np.array([[1] * 4 + [2] * 3 + [0], [1] * 8, [1] * 8])
    packed_TV, first_TV, second_TV = jax.jit(module.apply)({"params": params}, tokens_3T, positions_3T, segments_3T)
    np.testing.assert_allclose(packed_TV[:4], first_TV[:4], atol=1e-4)
    np.testing.assert_allclose(packed_TV[4:7], second_TV[:3], atol=1e-4)
    assert np.abs(packed_TV[4:7] - first_TV[4:7]).max() > 0.1
    assert np.isfinite(packed_TV).all()


def test_recorded_weights_of_linear_attention_are_those_of_its_formula():
    module = build(tiny(attention="linear", position="none", num_layers=1))
    params, tokens_BT = random_params(module), random_tokens(2, 12)
    weights_BNTS = np.asarray(record(module, params, tokens_BT)["layers/attention/weights"])[0]
    np.testing.assert_allclose(weights_BNTS.sum(-1), 1, atol=1e-5)
    assert (weights_BNTS >= 0).all()
    assert not np.triu(weights_BNTS, 1).any()
    x = np.asarray(params["embedding"]["embedding"], np.float64)[tokens_BT]
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * np.asarray(params["layers"]["attention_norm"]["scale"][0])
    query, key = (
        np.einsum("BTD,DNH->BTNH", x, np.asarray(params["layers"]["attention"][name]["kernel"][0], np.float64))
        for name in ("query", "key")
    )
    query, key = (np.where(y > 0, y + 1, np.exp(np.minimum(y, 0))) for y in (query, key))
    scores = np.tril(np.einsum("BTNH,BSNH->BNTS", query, key))
    np.testing.assert_allclose(weights_BNTS, scores / scores.sum(-1, keepdims=True), atol=1e-5)


@pytest.mark.usefixtures("chunk")
def test_weights_of_either_rule_times_the_values_are_what_it_reads():
    query, key, value, strength, log_decay = drawn()
    empty = np.zeros((B, N, H, H), np.float32)
    rest = (strength, log_decay)
    linear = jax.jit(chunks.linear_weights)(query, key, BEGINS_BT)
    delta = jax.jit(chunks.delta_weights)(query, key, *rest, BEGINS_BT)
    read, _ = jax.jit(chunks.linear_rule)(query, key, value, BEGINS_BT, empty)
    np.testing.assert_allclose(np.einsum("BNTS,BSNH->BTNH", linear, value), read, atol=2e-5)
    read, _ = jax.jit(chunks.delta_rule)(query, key, value, *rest, BEGINS_BT, empty)
    np.testing.assert_allclose(np.einsum("BNTS,BSNH->BTNH", delta, value), read, atol=2e-5)


def test_weights_of_delta_attention_are_recorded():
    module = build(tiny(**KINDS[2]))
    weights_LBNTS = record(module, random_params(module), random_tokens(2, 6))["layers/attention/weights"]
    assert weights_LBNTS.shape == (2, 2, 4, 6, 6)
    assert np.abs(weights_LBNTS[..., -1, :]).min() > 0


@pytest.mark.parametrize(
    ("settings", "sizes"), [(KINDS[0], {"data": 4, "tensor": 2}), (KINDS[2], {"data": 2, "fsdp": 2, "tensor": 2})]
)
def test_eight_devices_compute_what_one_computes(settings, sizes):
    module = build(tiny(**settings, num_layers=1))
    params, tokens_BT = random_params(module), random_tokens(8, 7)
    loss = lambda params, tokens_BT: jnp.mean(jnp.sin(module.apply({"params": params}, tokens_BT)))  # noqa: E731
    expected = jax.jit(jax.grad(loss))(params, tokens_BT)
    on = sharding.make_mesh(schema.Mesh(**sizes))
    with jax.set_mesh(on):
        placed = jax.device_put(params, sharding.param_shardings(module, on))
        found = jax.jit(jax.grad(loss))(placed, jax.device_put(tokens_BT, sharding.batch_sharding(on)))
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest, rtol=1e-4), found, expected)


@pytest.mark.parametrize("settings", KINDS[::2])
def test_bfloat16_computes_nearly_what_float32_computes(settings):
    exact = build(tiny(**settings))
    params, tokens_BT = random_params(exact), random_tokens(2, 12)
    expected = jax.jit(exact.apply)({"params": params}, tokens_BT)
    found = jax.jit(build(tiny(**settings, dtype="bfloat16")).apply)({"params": params}, tokens_BT)
    assert 1e-4 < np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.1


@pytest.mark.parametrize(
    ("attention", "setting", "words"),
    [
        ("linear", {"position": "relative"}, "--model.position=none"),
        ("delta", {"position": "alibi"}, "--model.position=none"),
        ("linear", {"window": 4}, "--model.window=4"),
        ("delta", {"kernel": "fused"}, "--model.kernel=fused"),
        ("delta", {"attention_sinks": True}, "--model.attention_sinks=True"),
        ("delta", {"qk_norm": "head"}, "--model.qk_norm=head"),
    ],
)
def test_settings_of_softmax_attention_are_refused(attention, setting, words):
    with pytest.raises(ConfigError, match=words):
        check(tiny(**{"attention": attention, "position": "none", "num_kv_heads": 0, **setting}))
    for position in ("none", "rope"):  # Rope is the default: which attention is one flag.
        check(tiny(attention=attention, position=position))
