"""Latent attention computes what transformers' DeepSeek-V3 computes with the same weights."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

from model.latent import LatentAttention
from model.transformer import find_places

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

B, T, D, N, H, R, P, Q = 2, 9, 16, 4, 6, 10, 4, 12


@pytest.mark.parametrize("narrow", [Q, 0])
@pytest.mark.parametrize("interleaved", [False, True])
def test_latent_attention_is_that_of_transformers(narrow, interleaved):
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as modeling
    from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config

    theirs = DeepseekV3Config(
        hidden_size=D, num_attention_heads=N, num_key_value_heads=N, q_lora_rank=narrow or None, kv_lora_rank=R,
        qk_rope_head_dim=P, qk_nope_head_dim=H, v_head_dim=H, rope_interleave=interleaved,
        attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    module = modeling.DeepseekV3Attention(theirs, 0).eval()
    for weights in module.parameters():
        torch.nn.init.normal_(weights, mean=float(weights.ndim == 1), std=0.3)
    x_BTD = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
    hidden, places_BT = torch.tensor(x_BTD), torch.arange(T)[None].expand(B, T)
    causal = torch.triu(torch.full((T, T), -torch.inf), 1)[None, None]
    with torch.no_grad():
        angles = modeling.DeepseekV3RotaryEmbedding(theirs)(hidden, places_BT)
        expected = module(hidden, position_embeddings=angles, attention_mask=causal)[0].numpy()

    config = tiny(
        attention="latent", num_kv_heads=0, head_width=H, latent_width=R, latent_rope_width=P, query_latent_width=narrow
    )
    params = ours({key: value.detach().numpy() for key, value in module.state_dict().items()}, interleaved)
    positions_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
    places = find_places(config, positions_BT, None, jnp.arange(B))
    found = LatentAttention(config).apply({"params": params}, jnp.asarray(x_BTD), places, jnp.int32(0))
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def ours(weights, interleaved):
    """DeepSeek's weights by our names; where it turns neighbours, those that we turn are brought apart."""
    apart = np.r_[0:P:2, 1:P:2] if interleaved else np.arange(P)
    both = np.r_[0:H, H + apart]
    wide = weights["kv_b_proj.weight"].reshape(N, 2 * H, R).transpose(2, 0, 1)
    narrow = weights["kv_a_proj_with_mqa.weight"].T
    query = weights.get("q_b_proj.weight", weights.get("q_proj.weight"))
    params = {
        "query": {"kernel": query.reshape(N, H + P, -1).transpose(2, 0, 1)[..., both]},
        "latent": {"kernel": narrow[:, :R]},
        "latent_norm": {"scale": weights["kv_a_layernorm.weight"]},
        "key_rotated": {"kernel": narrow[:, R:][:, apart]},
        "key": {"kernel": wide[..., :H]},
        "value": {"kernel": wide[..., H:]},
        "output": {"kernel": weights["o_proj.weight"].T.reshape(N, H, D)},
    }
    if "q_a_proj.weight" in weights:
        params["query_latent"] = {"kernel": weights["q_a_proj.weight"].T}
        params["query_latent_norm"] = {"scale": weights["q_a_layernorm.weight"]}
    return params
