"""The mixture of experts computes what transformers' Mixtral and Qwen3-MoE compute with the same weights."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

from model.experts import LOSSES, Experts

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

D, F, E, C = 16, 24, 8, 3


def block(name: str):
    """The published layer with random weights."""
    if name == "mixtral":
        from transformers.models.mixtral import modeling_mixtral as modeling
        from transformers.models.mixtral.configuration_mixtral import MixtralConfig

        config = MixtralConfig(hidden_size=D, intermediate_size=F, num_local_experts=E, num_experts_per_tok=C)
        module = modeling.MixtralSparseMoeBlock(config)
    else:
        from transformers.models.qwen3_moe import modeling_qwen3_moe as modeling
        from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig

        config = Qwen3MoeConfig(
            hidden_size=D, moe_intermediate_size=F, num_experts=E, num_experts_per_tok=C,
            norm_topk_prob=name == "qwen3 renormalized",
        )  # fmt: skip
        module = modeling.Qwen3MoeSparseMoeBlock(config)
    torch.manual_seed(0)
    for weights in module.parameters():
        torch.nn.init.normal_(weights, std=0.4)
    return module.eval(), modeling.load_balancing_loss_func


@pytest.mark.parametrize("name", ["mixtral", "qwen3", "qwen3 renormalized"])
def test_experts_are_those_of_transformers(name):
    module, balance_loss = block(name)
    x_BTD = np.random.default_rng(0).normal(size=(2, 7, D)).astype(np.float32)
    weights = {key: value.detach().numpy() for key, value in module.state_dict().items()}
    gate_up = weights["experts.gate_up_proj"].swapaxes(1, 2)
    kernels = {"gate": gate_up[..., :F], "up": gate_up[..., F:], "down": weights["experts.down_proj"].swapaxes(1, 2)}
    params = {
        "router": {"kernel": jnp.asarray(weights["gate.weight"].T)},
        "experts": {key: {"kernel": jnp.asarray(kernel)} for key, kernel in kernels.items()},
    }
    config = tiny(
        num_experts=E, experts_per_token=C, feed_forward_width=F, router_renormalize=name != "qwen3", router_balance=1.0
    )
    real_BT = jnp.ones((2, 7), bool)
    y_BTD, losses = Experts(config).apply({"params": params}, jnp.asarray(x_BTD), real_BT, mutable=[LOSSES])
    with torch.no_grad():
        expected = module(torch.tensor(x_BTD))
        logits = [torch.tensor(x @ weights["gate.weight"].T) for x in x_BTD]
    np.testing.assert_allclose(y_BTD, expected.numpy(), atol=1e-5 * float(expected.abs().max()))
    for row, row_logits in enumerate(logits):  # Theirs is a mean over tokens, ours a sum over those of a row.
        np.testing.assert_allclose(losses[LOSSES]["balance"][row] / 7, balance_loss((row_logits,), E, C), rtol=1e-5)
