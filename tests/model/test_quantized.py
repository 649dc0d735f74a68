"""Matrix products in 8 bits: which they are, and how near they come."""

from __future__ import annotations

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, random_tokens, tiny

from configs.schema import ConfigError
from model import build, quantized
from model.sharding import parameter_shapes

qwix = pytest.importorskip("qwix")
KINDS = {"int8": "i8", "fp8": "f8_e4m3fn"}


def loss_of(module):
    tokens_BT = random_tokens(2, 16)

    def loss(params):
        logits_BTV = module.apply({"params": params}, tokens_BT)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), tokens_BT[..., None], -1))

    return loss


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.01), ("fp8", 0.04)])
def test_a_product_is_near_the_exact_one_and_its_gradient_is_exact(kind, error):
    random = np.random.default_rng(0)
    x, kernel = (random.normal(size=shape).astype(np.float32) for shape in ((3, 5, 4, 16), (4, 16, 24)))
    found = jax.jit(quantized.multiply, static_argnums=(2, 3))(x, kernel, 2, kind)
    exact = np.tensordot(x, kernel, 2)
    assert 1e-4 < np.linalg.norm(found - exact) / np.linalg.norm(exact) < error
    d_y = random.normal(size=exact.shape).astype(np.float32)
    d_x, d_kernel = jax.vjp(lambda x, kernel: quantized.multiply(x, kernel, 2, kind), x, kernel)[1](d_y)
    np.testing.assert_allclose(d_x, np.einsum("BTO,NHO->BTNH", d_y, kernel), atol=1e-4)
    np.testing.assert_allclose(d_kernel, np.einsum("BTNH,BTO->NHO", x, d_y), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_linear_maps_of_layers_are_multiplied_in_8_bits_and_nothing_else(kind):
    module = build(tiny(matmul=kind, tied_embeddings=False))
    program = str(jax.make_jaxpr(loss_of(module))(parameter_shapes(module)))
    types = dict(re.findall(r"\b([a-z]+):(\w+)\[", program))
    products = [tuple(types[name] for name in pair)
                for pair in re.findall(r"dot_general\[[^]]*(?:\[[^]]*\][^]]*)*\] (\w+) (\w+)", program)]  # fmt: skip
    small = (KINDS[kind], KINDS[kind])
    assert products.count(small) == 7  # Query, key, value and output of attention; up, gate and down.
    assert len(products) == 7 + 3  # Scores, what is read by them, and the output layer.
    assert {pair for pair in products if pair != small} == {("f32", "f32")}


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.0005), ("fp8", 0.002)])
def test_loss_and_gradients_are_near_those_of_float32_in_a_loop_and_with_remat(kind, error):
    params = jax.tree.map(lambda x: 0.5 * x, random_params(build(tiny())))
    exact, found = (
        jax.jit(jax.value_and_grad(loss_of(module)))(params)
        for module in (build(tiny()), build(tiny(matmul=kind, remat="minimal")))
    )
    np.testing.assert_allclose(found[0], exact[0], rtol=0.005)
    ours, theirs = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(x[1])]) for x in (found, exact))
    assert 1 - ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) < error


def test_without_qwix_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    module = build(tiny(matmul="int8"))
    with pytest.raises(ConfigError, match=r"--model.matmul=int8 needs the package qwix.*seq2see\[quantized\]"):
        jax.eval_shape(loss_of(module), parameter_shapes(module))
