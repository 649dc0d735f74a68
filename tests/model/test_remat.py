"""Remat policies: the same gradients in less memory, and what each computes again."""

from __future__ import annotations

import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, random_tokens, tiny

from configs.check import REMAT_POLICIES
from configs.derived import translates
from model import Source, build
from model.sharding import parameter_shapes

T = 8
NETWORKS = {
    "decoder": {"window": 3, "window_pattern": "LG", "biases": True, "qk_norm": "head"},
    "encoder_decoder": {"network": "encoder_decoder", "num_experts": 4},
    "lstm": {"network": "lstm"},
    "lstm_encoder_decoder": {"network": "lstm_encoder_decoder"},
    "latent": {"attention": "latent"},
    "linear": {"attention": "linear"},
    "delta": {"attention": "delta"},
    "ring": {"kernel": "ring"},
}
POLICIES = (*REMAT_POLICIES[1:], "query,key,value,attention")
QUICK = [("decoder", "dots"), ("decoder", "offload"), ("lstm", "minimal")]
CASES = [
    pytest.param(name, remat, marks=() if (name, remat) in QUICK else pytest.mark.slow)
    for name in NETWORKS
    for remat in POLICIES
]


def loss_of(module, length=T):
    tokens_BT = random_tokens(2, length)
    options = {}
    if translates(module.config):
        positions_BT = np.broadcast_to(np.arange(length, dtype=np.int32), tokens_BT.shape)
        options["source"] = Source(random_tokens(2, length, seed=1), positions_BT, np.ones_like(tokens_BT))

    def loss(params):
        logits_BTV = module.apply({"params": params}, tokens_BT, **options)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), tokens_BT[..., None], -1))

    return loss


EXPECTED = {}


def loss_and_gradients(name, remat):
    module = build(tiny(**NETWORKS[name], remat=remat))
    return jax.jit(jax.value_and_grad(loss_of(module)))(random_params(module))


@pytest.mark.parametrize(("name", "remat"), CASES)
def test_remat_changes_neither_loss_nor_gradients(name, remat):
    if name not in EXPECTED:
        EXPECTED[name] = loss_and_gradients(name, "none")
    found = loss_and_gradients(name, remat)

    def close(a, b):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())

    jax.tree.map(close, found, EXPECTED[name])


def jaxpr(remat, length=T, **settings):
    module = build(tiny(remat=remat, **settings))
    return str(jax.make_jaxpr(jax.grad(loss_of(module, length)))(parameter_shapes(module)))


@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_each_policy_computes_again_the_products_that_it_says(layers):
    remats = (*REMAT_POLICIES, "up,down")
    dots = {remat: jaxpr(remat, layers=layers).count("dot_general[") for remat in remats}
    again = {remat: dots[remat] - dots["none"] for remat in remats}
    # A block has 7 linear maps, of which the last one's result is not needed again, and 2 products in attention.
    assert again == {"none": 0, "dots": 1, "minimal": 2, "qkv": 5, "full": 8, "offload": 5, "up,down": 7}


@pytest.mark.parametrize(("remat", "kernels"), [("dots", 3), ("minimal", 4)])
def test_an_attention_kernel_runs_again_only_if_its_results_are_not_kept(remat, kernels, monkeypatch):
    """Forward and two backward, of which the first runs again or not."""
    monkeypatch.setattr(sys.modules["model.kernels.splash"], "platform", lambda: "tpu")
    module = build(tiny(remat=remat, kernel="splash", head_width=128, num_kv_heads=4))
    program = jax.jit(jax.grad(loss_of(module, 128))).trace(parameter_shapes(module))
    assert program.lower(lowering_platforms=("tpu",)).as_text().count("@tpu_custom_call") == kernels


def test_the_recurrence_runs_again_only_if_its_gates_are_not_kept():
    loops = {remat: jaxpr(remat, network="lstm").count(" scan[") for remat in ("none", "minimal", "full")}
    assert loops["minimal"] == loops["none"] == loops["full"] - 1


@pytest.mark.parametrize("name", ["decoder", pytest.param("encoder_decoder", marks=pytest.mark.slow)])
def test_memory_falls_from_policy_to_policy(name):
    temporary = []
    for remat in ("none", "dots", "minimal", "qkv", "full"):
        module = build(tiny(**NETWORKS[name], num_layers=12, remat=remat))
        program = jax.jit(jax.grad(loss_of(module, 64))).lower(parameter_shapes(module)).compile()
        temporary.append(program.memory_analysis().temp_size_in_bytes)
    assert temporary == sorted(temporary, reverse=True)
    assert len(set(temporary)) == len(temporary)
    assert temporary[-1] < temporary[0] / 3


@pytest.mark.slow
def test_offloading_compiles_for_a_tpu_and_puts_the_inputs_of_layers_into_the_hosts_memory():
    pytest.importorskip("libtpu")
    os.environ.update(
        ALLOW_MULTIPLE_LIBTPU_LOAD="1", TPU_SKIP_MDS_QUERY="1", TPU_ACCELERATOR_TYPE="v5litepod-8",
        TPU_WORKER_HOSTNAMES="localhost", TPU_WORKER_ID="0",
    )  # fmt: skip
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    lies = jax.sharding.SingleDeviceSharding(topology.devices[0])
    memory = {}
    for remat in ("full", "offload"):
        module = build(tiny(remat=remat, num_layers=16, width=256, head_width=64, dtype="bfloat16"))
        program = jax.jit(jax.grad(loss_of(module, 512)), in_shardings=lies).lower(parameter_shapes(module)).compile()
        memory[remat] = program.memory_analysis()
    inputs = 16 * 2 * 512 * 256 * 2  # Layers x rows x tokens x width x bytes.
    assert memory["full"].host_temp_size_in_bytes == 0
    assert memory["offload"].host_temp_size_in_bytes >= inputs
