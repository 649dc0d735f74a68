"""The mixture of experts: against its definition token by token in float64, on one device and spread over eight."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from caching import decode_from_cache
from jax.sharding import PartitionSpec
from tiny import random_params, random_tokens, tiny

from configs import schema
from configs.schema import ConfigError
from model import build, experts, sharding
from model.experts import LOSSES, Experts
from model.lens.edits import scaled, spot
from model.lens.record import record

B, T, D, E = 8, 6, 16, 4
REAL_BT = np.ones((B, T), bool)
REAL_BT[0, 4:] = REAL_BT[3] = False


def layer(real_BT=REAL_BT, seed=0, **settings):
    """Config, parameters, input and the function (params, x) -> (output, losses)."""
    config = tiny(num_experts=E, **settings)
    module = Experts(config)
    random = np.random.default_rng(seed)
    x_BTD = jnp.asarray(random.normal(size=(B, T, D)), jnp.float32)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x_BTD.astype(config.model.dtype), real_BT))["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(0.4 * random.normal(size=leaf.shape), leaf.dtype), shapes)

    def apply(params, x_BTD):
        y_BTD, variables = module.apply({"params": params}, x_BTD, real_BT, mutable=[LOSSES])
        return y_BTD, variables[LOSSES]

    return config, params, x_BTD, apply


def probabilities(params, x_BTD):
    logits = x_BTD @ params["router"]["kernel"] + params["router"].get("bias", 0)
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return logits, exp / exp.sum(-1, keepdims=True)


def one_by_one(config, params, x_BTD, real_BT=REAL_BT):
    """What the layer is defined to compute, a token and an expert at a time; and how many choices were dropped."""
    model, params = config.model, jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x_BTD, y_BTD, dropped = np.asarray(x_BTD, np.float64), np.zeros(x_BTD.shape), 0
    room = np.ceil(model.expert_capacity * model.experts_per_token * T / E) if model.expert_capacity else np.inf
    silu = lambda z: z / (1 + np.exp(-z))  # noqa: E731
    _, probability = probabilities(params, x_BTD)
    for b in range(B):
        taken = np.zeros(E)
        for t in np.flatnonzero(real_BT[b]):
            best = np.argsort(-probability[b, t])[: model.experts_per_token]
            total = probability[b, t, best].sum() if model.router_renormalize else 1
            for e in best:
                taken[e] += 1
                if taken[e] > room:
                    dropped += 1
                    continue
                hidden = through(params, "up", e, x_BTD[b, t])
                gate = silu(through(params, "gate", e, x_BTD[b, t])) if model.gated else 0
                hidden = gate * hidden if model.gated else silu(hidden)
                y_BTD[b, t] += probability[b, t, e] / total * through(params, "down", e, hidden)
    return y_BTD, dropped


def through(params, name, expert, x):
    weights = params["experts"][name]
    return x @ weights["kernel"][expert] + (weights["bias"][expert] if "bias" in weights else 0)


@pytest.fixture(params=["blocks", "ragged"])
def way(request, monkeypatch):
    """Both ways to multiply each token by its expert's matrix, whatever the platform."""
    if request.param == "ragged":
        monkeypatch.setattr(experts, "block_size", lambda choices, count: 1)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "settings",
    [{}, {"biases": True, "router_renormalize": False}, {"gated": False, "activation": "silu", "experts_per_token": 3}],
)
def test_dropless_experts_compute_what_each_token_s_experts_compute(settings):
    config, params, x_BTD, apply = layer(**settings)
    expected, _ = one_by_one(config, params, x_BTD)
    np.testing.assert_allclose(jax.jit(apply)(params, x_BTD)[0], expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("capacity", [0.5, 0.9, 4.0])
def test_an_expert_takes_tokens_in_order_until_it_is_full(capacity):
    config, params, x_BTD, apply = layer(expert_capacity=capacity)
    expected, dropped = one_by_one(config, params, x_BTD)
    assert (dropped > 0) == (capacity < 1)
    np.testing.assert_allclose(jax.jit(apply)(params, x_BTD)[0], expected, atol=1e-5 * np.abs(expected).max())


def test_a_row_s_result_depends_on_no_other_row_even_where_tokens_are_dropped():
    _, params, x_BTD, apply = layer(expert_capacity=0.5)
    other_BTD = np.concatenate([x_BTD[:1], np.random.default_rng(5).normal(size=(B - 1, T, D)).astype(np.float32)])
    run = jax.jit(apply)
    np.testing.assert_array_equal(run(params, x_BTD)[0][0], run(params, other_BTD)[0][0])


@pytest.mark.parametrize("settings", [{}, {"expert_capacity": 0.5}])
def test_padding_takes_no_expert_s_time_and_gets_nothing(settings):
    _, params, x_BTD, apply = layer(**settings)
    y_BTD, losses = jax.jit(apply)(params, x_BTD)
    changed, losses_too = jax.jit(apply)(params, jnp.where(REAL_BT[..., None], x_BTD, 7 * x_BTD))
    assert not np.asarray(y_BTD)[~REAL_BT].any()
    np.testing.assert_array_equal(y_BTD, changed)
    jax.tree.map(np.testing.assert_array_equal, losses, losses_too)


def test_losses_are_those_of_the_papers_as_sums_over_each_row_s_tokens():
    _, params, x_BTD, apply = layer(router_balance=0.3, router_z_loss=0.2)
    losses = jax.jit(apply)(params, x_BTD)[1]
    logits, probability = probabilities(jax.tree.map(np.asarray, params), np.asarray(x_BTD, np.float64))
    for b in range(B):
        tokens = np.flatnonzero(REAL_BT[b])
        z = (np.log(np.exp(logits[b, tokens]).sum(-1)) ** 2).sum()
        np.testing.assert_allclose(losses["z"][b], 0.2 * z, rtol=1e-5)
        chosen = np.argsort(-probability[b, tokens])[:, :2]
        share = np.array([(chosen == e).sum() for e in range(E)]) / max(len(tokens), 1)
        balance = E * (share * probability[b, tokens].sum(0)).sum()  # Mean probability times tokens.
        np.testing.assert_allclose(losses["balance"][b], 0.3 * balance, rtol=1e-5)
    assert losses["balance"].shape == (B,)


def test_an_even_router_has_the_least_balance_loss():
    logits = jnp.zeros((1, 4, E))
    even = jnp.array([[[0, 1], [2, 3], [0, 1], [2, 3]]], jnp.int32)
    balance_B, _ = experts.router_losses(logits, jax.nn.softmax(logits), even)
    np.testing.assert_allclose(balance_B, 4 * 2, rtol=1e-6)  # Four tokens, two choices.
    tilted = logits.at[..., :2].set(1.0)
    assert experts.router_losses(tilted, jax.nn.softmax(tilted), jnp.broadcast_to(even[:, :1], even.shape))[0] > 8


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({}, {"data": 2, "expert": 4}),
        ({"biases": True}, {"data": 1, "fsdp": 2, "expert": 2, "tensor": 2}),
        ({"expert_capacity": 0.5, "biases": True}, {"data": 1, "fsdp": 2, "expert": 2, "tensor": 2}),
    ],
)
def test_experts_spread_over_eight_devices_compute_what_one_computes_and_so_do_their_gradients(settings, sizes):
    _, params, x_BTD, apply = layer(**settings)

    def total(params, x_BTD):
        y_BTD, losses = apply(params, x_BTD)
        return jnp.sum(jnp.sin(y_BTD)) + sum(jnp.sum(loss) for loss in jax.tree.leaves(losses)), y_BTD

    run = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    expected = jax.jit(run)(params, x_BTD)
    on = sharding.make_mesh(schema.Mesh(**sizes))
    with jax.set_mesh(on):
        found = jax.jit(run)(params, jax.device_put(x_BTD, sharding.batch_sharding(on)))

    def assert_close(ours, theirs):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())

    jax.tree.map(assert_close, found, expected)


def test_each_device_holds_its_own_experts_and_no_tokens_of_others_are_gathered_with_capacity():
    module = build(tiny(num_experts=E, expert_capacity=1.0, layers="unroll", num_layers=1))
    on = sharding.make_mesh(schema.Mesh(data=2, expert=4))
    shardings = sharding.param_shardings(module, on)
    kernel = shardings["layers"]["feed_forward"]["experts"]["up"]["kernel"]
    assert kernel.spec == PartitionSpec(("stage",), ("expert",), ("fsdp",), ("tensor",))
    params = jax.device_put(random_params(module), shardings)
    with jax.set_mesh(on):
        training = jax.jit(partial(module.apply, mutable=[LOSSES]))
        program = training.lower({"params": params}, random_tokens(8, 6)).compile().as_text()
    assert "all-to-all" in program
    with pytest.raises(ConfigError, match=r"--model\.num_experts=6"):
        sharding.check_divisible(tiny(num_experts=6, num_kv_heads=4), on)


def test_capacity_counts_while_training_only():
    module = build(tiny(num_experts=E, expert_capacity=0.25))
    params, tokens_BT = {"params": random_params(module)}, random_tokens(2, 12)
    roomy = build(tiny(num_experts=E))
    np.testing.assert_array_equal(module.apply(params, tokens_BT), roomy.apply(params, tokens_BT))
    trained, _ = module.apply(params, tokens_BT, mutable=[LOSSES])
    assert np.abs(trained - module.apply(params, tokens_BT)).max() > 1e-2


def test_a_network_with_experts_decodes_from_its_cache_and_shows_who_goes_where():
    module = build(tiny(num_experts=E))
    decode_from_cache(module)
    params, tokens_BT = random_params(module), random_tokens(2, 5)
    router_LBTE = record(module, params, tokens_BT, ("layers/feed_forward/router",))["layers/feed_forward/router"]
    assert router_LBTE.shape == (2, 2, 5, E)
    np.testing.assert_allclose(router_LBTE.sum(-1), 1, atol=1e-5)
    losses = jax.eval_shape(lambda: module.apply({"params": params}, tokens_BT, mutable=[LOSSES])[1][LOSSES])
    assert jax.tree.map(lambda loss: loss.shape, losses) == {
        "layers": {"feed_forward": {"balance": (2, 2), "z": (2, 2)}}
    }


@pytest.mark.parametrize("biases", [False, True])
def test_hidden_units_of_experts_are_seen_and_silenced(biases):
    module = build(tiny(num_experts=E, biases=biases))
    params, tokens_BT = random_params(module), random_tokens(2, 5)
    hidden, router, added = (
        f"layers/{name}" for name in ("feed_forward/hidden", "feed_forward/router", "added/feed_forward")
    )
    found = record(module, params, tokens_BT, [hidden, router, added])
    np.testing.assert_allclose(found["logits"], module.apply({"params": params}, tokens_BT), atol=1e-4)
    chosen_LBTE = np.any(np.asarray(found[hidden]) != 0, axis=-1)
    np.testing.assert_array_equal(chosen_LBTE.sum(-1), 2)
    share_LBTE = np.where(chosen_LBTE, found[router], 0)
    share_LBTE /= share_LBTE.sum(-1, keepdims=True)
    down = params["layers"]["feed_forward"]["experts"]["down"]

    def written(hidden_LBTEF):
        y_LBTED = np.einsum("LBTEF,LEFD->LBTED", hidden_LBTEF, down["kernel"])
        y_LBTED += np.asarray(down["bias"])[:, None, None] if biases else 0
        return np.einsum("LBTED,LBTE->LBTD", y_LBTED, share_LBTE)

    np.testing.assert_allclose(found[added], written(found[hidden]), atol=1e-4)
    expert = int(np.argmax(chosen_LBTE[0, 0, 3]))
    off = scaled(spot(module, hidden, 5, layer=0, head=expert, token=3), 0)
    silenced = record(module, params, tokens_BT, [added], edits={hidden: off})
    left_LBTEF = np.array(found[hidden])
    left_LBTEF[0, :, 3, expert] = 0
    np.testing.assert_allclose(silenced[added][0], written(left_LBTEF)[0], atol=1e-4)
    assert np.abs(silenced[added][0] - found[added][0]).max() > 1e-2


def test_bfloat16_routes_in_float32():
    _, params, x_BTD, apply = layer(dtype="bfloat16")
    rounded = x_BTD.astype(jnp.bfloat16)
    _, losses = apply(params, rounded)
    _, _, _, exact = layer()
    y_BTD, expected = exact(params, rounded.astype(jnp.float32))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), losses, expected)
    found, _ = apply(params, rounded)
    assert found.dtype == jnp.bfloat16
    assert np.linalg.norm(found.astype(jnp.float32) - y_BTD) / np.linalg.norm(y_BTD) < 0.02
