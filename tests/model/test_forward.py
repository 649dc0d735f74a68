"""The whole network against a second one, written here in float64 numpy from the papers."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from tiny import random_params, random_tokens, tiny

from model import build

NETWORKS = {
    "llama": {},
    "gpt2": {
        "attention": "mha", "position": "learned", "norm": "layer", "activation": "gelu", "gated": False,
        "biases": True, "tied_embeddings": False, "norm_epsilon": 0.1,
    },
    "original": {
        "attention": "mqa", "position": "sinusoidal", "norm": "layer", "norm_position": "post", "activation": "relu",
        "gated": False, "biases": True,
    },
    "gemma": {
        "position": "rope", "rope_base": 100.0, "norm_position": "both", "activation": "gelu", "qk_norm": "head",
        "window": 3, "window_pattern": "LLG", "num_layers": 3, "attention_softcap": 2.0, "logit_softcap": 5.0,
        "head_width": 6, "feed_forward_width": 10,
    },
    "bloom": {
        "position": "alibi", "num_heads": 6, "num_kv_heads": 3, "width": 18, "activation": "relu2", "qk_norm": "head",
        "norm_position": "post",
    },
    "attention alone": {"attention": "mha", "feed_forward": False},
    "set": {
        "position": "none", "attention_sinks": True, "window": 2, "biases": True, "norm_position": "both",
        "tied_embeddings": False,
    },
}  # fmt: skip


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {
    "gelu": gelu,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
}


def normalize(model, p, x, kind):
    x = x - x.mean(-1, keepdims=True) if kind == "layer" else x
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + model.norm_epsilon) * p["scale"] + p.get("bias", 0)


def affine(p, x):
    """A linear map of the last axis; the kernel's further axes are outputs."""
    return np.tensordot(x, p["kernel"], 1) + p.get("bias", 0)


def rope(x_BTNH, positions_BT, base):
    half = x_BTNH.shape[-1] // 2
    angle = positions_BT[:, :, None, None] * base ** (-np.arange(half) / half)
    turned = (x_BTNH[..., :half] + 1j * x_BTNH[..., half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag], -1)


def attention(model, p, x_BTD, positions_BT, segments_BT, window):
    query, key, value = (affine(p[name], x_BTD) for name in ("query", "key", "value"))
    if model.qk_norm == "head":
        query, key = (normalize(model, p[f"{n}_norm"], x, "rms") for n, x in (("query", query), ("key", key)))
    if model.position == "rope":
        query, key = (rope(x, positions_BT, model.rope_base) for x in (query, key))
    read = np.zeros(query.shape)
    for b, t, n in np.ndindex(query.shape[:3]):
        seen = [
            s for s in range(x_BTD.shape[1])
            if segments_BT[b, s] == segments_BT[b, t] and positions_BT[b, s] <= positions_BT[b, t]
            and not (window and positions_BT[b, t] - positions_BT[b, s] >= window)
        ]  # fmt: skip
        group = n * key.shape[2] // query.shape[2]
        scores = key[b, seen, group] @ query[b, t, n] / math.sqrt(query.shape[3])
        if model.attention_softcap:
            scores = model.attention_softcap * np.tanh(scores / model.attention_softcap)
        if model.position == "alibi":  # Six heads: four slopes of a power of two, then two of those between.
            slope = [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8][n]
            scores = scores - slope * (positions_BT[b, t] - positions_BT[b, seen])
        exp = np.exp(scores)
        total = exp.sum() + (np.exp(p["sinks"][n]) if model.attention_sinks else 0)
        read[b, t, n] = exp / total @ value[b, seen, group]
    return np.tensordot(read, p["output"]["kernel"], 2) + p["output"].get("bias", 0)


def feed_forward(model, p, x):
    hidden = ACTIVATIONS[model.activation](affine(p["gate" if model.gated else "up"], x))
    return affine(p["down"], hidden * affine(p["up"], x) if model.gated else hidden)


def network(model, p, tokens_BT, positions_BT, segments_BT):
    x = p["embedding"]["embedding"][tokens_BT]
    if model.position == "learned":
        x = x + p["position"]["embedding"][positions_BT]
    if model.position == "sinusoidal":
        half = model.width // 2
        angle = positions_BT[..., None] * 10_000 ** (-np.arange(half) / half)
        x = x + np.concatenate([np.sin(angle), np.cos(angle)], -1)
    for layer in range(model.num_layers):
        block = jax.tree.map(lambda stacked, layer=layer: stacked[layer], p["layers"])
        local = model.window_pattern[layer % len(model.window_pattern)] == "L"
        for name in ("attention", "feed_forward")[: 1 + model.feed_forward]:
            y = x if model.norm_position == "post" else normalize(model, block[f"{name}_norm"], x, model.norm)
            if name == "attention":
                y = attention(model, block[name], y, positions_BT, segments_BT, model.window if local else 0)
            else:
                y = feed_forward(model, block[name], y)
            if model.norm_position == "both":
                y = normalize(model, block[f"{name}_post_norm"], y, model.norm)
            x = normalize(model, block[f"{name}_norm"], x + y, model.norm) if model.norm_position == "post" else x + y
    if model.norm_position != "post":
        x = normalize(model, p["final_norm"], x, model.norm)
    logits = x @ p["embedding"]["embedding"].T if model.tied_embeddings else affine(p["output"], x)
    return model.logit_softcap * np.tanh(logits / model.logit_softcap) if model.logit_softcap else logits


@pytest.mark.parametrize("name", NETWORKS)
def test_network_equals_numpy_in_float64(name):
    module = build(tiny(**NETWORKS[name]))
    params = random_params(module)
    tokens_BT = random_tokens(2, 9)
    segments_BT = np.array([[1] * 9, [1] * 4 + [2] * 5])
    positions_BT = np.array([[*range(9)], [*range(4), *range(5)]])
    logits_BTV = jax.jit(module.apply)({"params": params}, tokens_BT, positions_BT, segments_BT)
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    expected = network(module.config.model, exact, tokens_BT, positions_BT, segments_BT)
    assert logits_BTV.dtype == "float32"
    np.testing.assert_allclose(logits_BTV, expected, atol=3e-5 * np.abs(expected).max())
