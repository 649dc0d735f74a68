"""The gated delta rule and its layer compute what transformers' Qwen3-Next computes."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

from model import chunks
from model.linear import DeltaAttention
from model.transformer import find_places

torch = pytest.importorskip("torch")
modeling = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")

B, T, D, N, H = 2, 70, 16, 4, 8


@pytest.mark.parametrize("theirs", ["torch_recurrent_gated_delta_rule", "torch_chunk_gated_delta_rule"])
def test_delta_rule_is_that_of_transformers(theirs):
    random = np.random.default_rng(0)
    query, key, value = random.normal(size=(3, B, T, N, H)).astype(np.float32)
    query, key = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (query, key))
    strength_BTN = random.uniform(size=(B, T, N)).astype(np.float32)
    log_decay_BTN = -random.exponential(0.2, size=(B, T, N)).astype(np.float32)
    state = random.normal(size=(B, N, H, H)).astype(np.float32)
    inputs = [torch.tensor(x) for x in (query, key, value)]
    expected = getattr(modeling, theirs)(
        *inputs, g=torch.tensor(log_decay_BTN), beta=torch.tensor(strength_BTN), initial_state=torch.tensor(state),
        output_final_state=True,
    )  # fmt: skip
    begins_BT = jnp.zeros((B, T), bool)
    found = chunks.delta_rule(query * H**-0.5, key, value, strength_BTN, log_decay_BTN, begins_BT, state)
    for ours, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, other.numpy(), atol=1e-5 * float(other.abs().max()))


def test_delta_attention_is_the_layer_of_transformers():
    from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig

    theirs = Qwen3NextConfig(
        hidden_size=D, num_hidden_layers=1, layer_types=["linear_attention"], linear_num_value_heads=N,
        linear_num_key_heads=N, linear_key_head_dim=H, linear_value_head_dim=H, linear_conv_kernel_dim=4,
    )  # fmt: skip
    torch.manual_seed(0)
    module = modeling.Qwen3NextGatedDeltaNet(theirs, 0).eval()
    for weights in module.parameters():
        torch.nn.init.normal_(weights, std=0.4)
    x_BTD = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.tensor(x_BTD)).numpy()
    weights = {key: value.detach().numpy() for key, value in module.state_dict().items()}
    mixed = weights["in_proj_qkvz.weight"].reshape(N, 4, H, D).transpose(1, 3, 0, 2)  # A head's four maps together.
    strength, decay = weights["in_proj_ba.weight"].reshape(N, 2, D).transpose(1, 2, 0)
    params = {name: {"kernel": mixed[i]} for i, name in enumerate(("query", "key", "value", "output_gate"))}
    params |= {
        "beta": {"kernel": strength},
        "decay": {"kernel": decay, "bias": weights["dt_bias"], "rate": weights["A_log"]},
        "convolution": {"taps": weights["conv1d.weight"][:, 0].reshape(3, N, H, 4).transpose(3, 0, 1, 2)},
        "read_norm": {"scale": weights["norm.weight"]},
        "output": {"kernel": weights["out_proj.weight"].T.reshape(N, H, D)},
    }
    config = tiny(attention="delta", position="none", num_kv_heads=0, head_width=H)
    positions_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
    places = find_places(config, positions_BT, None, jnp.arange(B))
    found = DeltaAttention(config).apply({"params": params}, jnp.asarray(x_BTD), places, jnp.int32(0))
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
