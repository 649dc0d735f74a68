from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from tiny import random_params, random_tokens, tiny

import train.loss
from configs import schema
from configs.convert import override
from model import build
from model.sharding import batch_sharding, make_mesh, param_shardings, parameter_shapes
from train.loss import cross_entropy, output_loss

B, T, V = 3, 5, 11


def case(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits_BTV = rng.normal(size=(B, T, V)) * 3
    return logits_BTV, rng.integers(0, V, (B, T)), rng.integers(0, 2, (B, T))


def reference(logits_BTV, targets_BT, weights_BT, smoothing, z_loss):
    """Objective, nll, z and targets in float64, from the definition of cross entropy with a smoothed target."""
    logs_BTV = scipy.special.log_softmax(logits_BTV, axis=-1)
    wanted_BTV = np.eye(V)[targets_BT] * (1 - smoothing) + smoothing / V
    z_BT = z_loss * scipy.special.logsumexp(logits_BTV, axis=-1) ** 2
    objective_BT = -(wanted_BTV * logs_BTV).sum(-1) + z_BT
    nll_BT = -np.take_along_axis(logs_BTV, targets_BT[..., None], -1)[..., 0]
    return [(x * weights_BT).sum() for x in (objective_BT, nll_BT, z_BT)] + [weights_BT.sum()]


@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.01), (0.2, 0.003)])
def test_sums_equal_the_definition_in_float64(smoothing, z_loss):
    logits_BTV, targets_BT, weights_BT = case()
    ours = cross_entropy(jnp.asarray(logits_BTV, jnp.float32), targets_BT, weights_BT != 0, smoothing, z_loss)
    np.testing.assert_allclose(ours, reference(logits_BTV, targets_BT, weights_BT, smoothing, z_loss), rtol=1e-5)


@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.0, 0.0), (0.2, 0.003)])
def test_gradient_equals_finite_differences_of_the_definition(smoothing, z_loss):
    logits_BTV, targets_BT, weights_BT = case(1)
    ours_BTV = jax.grad(lambda x: cross_entropy(x, targets_BT, weights_BT, smoothing, z_loss).objective)(
        jnp.asarray(logits_BTV, jnp.float32)
    )
    h, theirs_BTV = 1e-5, np.zeros_like(logits_BTV)
    for index in np.ndindex(logits_BTV.shape):
        up, down = logits_BTV.copy(), logits_BTV.copy()
        up[index], down[index] = up[index] + h, down[index] - h
        ends = [reference(x, targets_BT, weights_BT, smoothing, z_loss)[0] for x in (up, down)]
        theirs_BTV[index] = (ends[0] - ends[1]) / (2 * h)
    np.testing.assert_allclose(ours_BTV, theirs_BTV, atol=2e-6)


def test_masked_targets_have_no_gradient_and_huge_logits_no_overflow():
    logits_BTV, targets_BT, weights_BT = case(2)
    logits_BTV = jnp.asarray(logits_BTV * 1e4, jnp.float32)
    value, gradient_BTV = jax.value_and_grad(lambda x: cross_entropy(x, targets_BT, weights_BT).objective)(logits_BTV)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient_BTV))
    assert not np.any(np.asarray(gradient_BTV)[weights_BT == 0])
    assert np.any(np.asarray(gradient_BTV)[weights_BT == 1])


def test_bfloat16_logits_are_summed_in_float32():
    logits_BTV = jnp.zeros((1, 1, 4096), jnp.bfloat16)
    loss = cross_entropy(logits_BTV, jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1)))
    assert loss.nll.dtype == jnp.float32
    np.testing.assert_allclose(loss.nll, np.log(4096), rtol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"tied_embeddings": False, "output_bias": True, "logit_softcap": 5.0}])
@pytest.mark.parametrize("chunks", [2, 4, 16])
def test_chunks_of_the_logits_give_the_loss_and_the_gradient_of_all_at_once(settings, chunks):
    config = tiny(**settings)
    module = build(config)
    params, tokens_BT = random_params(module), random_tokens(2, 16)
    weights_BT = jnp.asarray(np.arange(32).reshape(2, 16) % 3 != 0, jnp.float32)

    def loss(params, chunks):
        x_BTD = module.apply({"params": params}, tokens_BT, head=False)
        sums = output_loss(config, params, x_BTD, tokens_BT, weights_BT, 0.1, 0.01, chunks=chunks)
        return sums.objective / 7, sums

    def plain(params):
        sums = cross_entropy(module.apply({"params": params}, tokens_BT), tokens_BT, weights_BT, 0.1, 0.01)
        return sums.objective / 7, sums

    (_, ours), our_gradient = jax.jit(jax.value_and_grad(lambda p: loss(p, chunks), has_aux=True))(params)
    (_, theirs), their_gradient = jax.jit(jax.value_and_grad(plain, has_aux=True))(params)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    np.testing.assert_allclose(loss(params, chunks)[1], theirs, rtol=1e-6)  # Without a gradient.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), our_gradient, their_gradient)


def loss_on_a_mesh(length: int, chunks: int):
    """The loss of a chunked output layer that 4 devices share, with its gradient, compiled; and what it takes."""
    config = tiny(tied_embeddings=False, logit_softcap=5.0)
    mesh, module = make_mesh(schema.Mesh(data=2, fsdp=4)), build(config)
    lies, rows = param_shardings(module, mesh), batch_sharding(mesh)
    x_BTD = jnp.asarray(np.random.default_rng(0).normal(size=(8, length, 16)), jnp.float32)
    inputs = random_params(module), x_BTD, random_tokens(8, length), jnp.ones((8, length), jnp.float32)

    def loss(params, *inputs, chunks=chunks):
        return output_loss(config, params, *inputs, 0.1, 0.01, chunks=chunks).objective

    with jax.set_mesh(mesh):
        assert train.loss._groups(config, 8, length, chunks) == max(1, length // 16)
        gradient = jax.jit(
            jax.value_and_grad(loss, (0, 1)), in_shardings=(lies, rows, rows, rows), out_shardings=(None, (lies, rows))
        )
        compiled = gradient.lower(*inputs).compile()
    return compiled, jax.value_and_grad(functools.partial(loss, chunks=1), (0, 1)), inputs


@pytest.mark.parametrize("length", [16, 64])  # One group of parts, and four.
def test_groups_of_chunks_on_devices_that_share_the_output_layer_give_the_gradient_of_all_at_once(length):
    ours, theirs, inputs = loss_on_a_mesh(length, chunks=8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5), ours(*inputs), theirs(*inputs))


def test_devices_exchange_the_output_layer_and_its_gradient_outside_of_the_loop_over_chunks():
    hlo = loss_on_a_mesh(16, chunks=4)[0].as_text()
    exchange = r"= (\S+) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)\("
    loops = set(re.findall(r"body=%([\w.\-]+)", hlo))
    assert loops
    for computation in re.split(r"\n(?=\S)", hlo):
        exchanged = {shape for shape, _ in re.findall(exchange, computation)}
        if re.match(r"%([\w.\-]+)", computation) and re.match(r"%([\w.\-]+)", computation)[1] in loops:
            assert exchanged <= {"f32[]"}  # The sum of the loss.
    assert len(re.findall(r" all-gather\(", hlo)) == 1


def test_memory_at_a_large_vocabulary_is_that_of_a_chunk(monkeypatch):
    config = override(tiny(), {"tokenizer.vocab_size": 262_144})
    B, T = 2, 64

    def peak(logits: int) -> int:
        monkeypatch.setattr(train.loss, "LOGITS", logits)
        x_BTD = jax.ShapeDtypeStruct((B, T, 16), "float32")
        tokens_BT, weights_BT = jax.ShapeDtypeStruct((B, T), "int32"), jax.ShapeDtypeStruct((B, T), "float32")
        params = parameter_shapes(build(config))

        def loss(params, *inputs):
            return output_loss(config, params, *inputs).objective

        compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(params, x_BTD, tokens_BT, weights_BT).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = 4 * B * T * 262_144
    assert peak(2**40) >= whole
    assert peak(B * 262_144) < whole / 2  # The table's gradient is the rest of it.


def test_chunks_are_as_few_as_the_limit_allows_and_divide_the_length():
    config = override(tiny(), {"tokenizer.vocab_size": 2**18})
    assert train.loss._chunks(tiny(), 8, 1024) == 1
    assert train.loss._chunks(config, 1, 1024) == 4
    assert train.loss._chunks(config, 1, 1026) == 6
    assert train.loss._chunks(config, 4096, 12) == 12
    with jax.set_mesh(make_mesh(schema.Mesh(data=2, fsdp=2, tensor=2))):
        assert train.loss._chunks(config, 8, 1024) == 4
