"""Weights in fewer bits: what is computed with them is what their rounded values give."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, random_tokens, tiny

from configs.schema import ConfigError
from model import Source, build, packed
from model.generate import Sampling, generate

NETWORKS = {
    "tied": {"tied_embeddings": True, "biases": True},
    "output layer": {"tied_embeddings": False, "gated": True},
    "latent": {"attention": "latent", "num_kv_heads": 0},
    "experts": {"num_experts": 2, "experts_per_token": 1},
    "encoder-decoder": {"network": "encoder_decoder", "position": "relative"},
}


def rounded(name: str, kernel: np.ndarray, axes: tuple[int, ...], kind: str) -> np.ndarray:
    """What a kernel is after rounding, in float64."""
    if kind == "bfloat16":
        return np.asarray(kernel.astype(jnp.bfloat16), np.float64)
    scale = np.abs(np.asarray(kernel, np.float64)).max(axis=axes, keepdims=True) / 127
    return np.round(kernel / scale) * scale


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_packed_network_gives_what_rounded_weights_give(name, kind, monkeypatch):
    monkeypatch.setattr(packed, "LARGE", 64)  # Piece by piece, and the last piece overlaps.
    monkeypatch.setattr(packed, "PIECE", 7)
    module = build(tiny(**NETWORKS[name]))
    params, tokens_BT = random_params(module), random_tokens(2, 7)
    source = Source.of(random_tokens(2, 5)) if "encoder" in name else None

    def logits(params):
        return np.asarray(jax.jit(lambda params: module.apply({"params": params}, tokens_BT, source=source))(params))

    small, count = packed.pack(module, params, kind), 0

    def round_it(path, leaf):
        nonlocal count
        names = [entry.key for entry in path]
        beside, first = small, int("layers" in names)
        for key in names[:-1]:
            beside = beside[key]["0"] if key == "layers" else beside[key]
        if names[-1] not in ("kernel", "embedding") or packed.MATRIX not in beside:
            return leaf
        count += 1
        # All maps here have one axis of inputs, but for the one behind the heads.
        heads = names[-2] == "output" and leaf.ndim == 3 + first
        axes = (1,) if names[-1] == "embedding" else (first, first + 1) if heads else (first,)
        return jnp.asarray(rounded(name, np.asarray(leaf), axes, kind), jnp.float32)

    expected = logits(jax.tree_util.tree_map_with_path(round_it, params))
    assert count >= 4
    np.testing.assert_allclose(logits(small), expected, atol=1e-4 * np.abs(expected).max())
    assert np.abs(logits(params) - expected).max() > 1e-4 * np.abs(expected).max()
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (small, params)]
    assert sizes[0] < sizes[1] * (1 if name in ("latent", "experts") else 0.7)  # Their own kernels stay whole.


def test_bfloat16_parameters_are_the_same_network_in_another_form():
    module = build(tiny(dtype="bfloat16", param_dtype="bfloat16", tied_embeddings=True))
    params, tokens_BT = random_params(module), random_tokens(2, 9)
    bits = packed.pack(module, params)
    assert bits["layers"]["1"]["feed_forward"]["up"][packed.MATRIX].dtype == jnp.bfloat16
    plain, ours = (np.asarray(jax.jit(module.apply)({"params": p}, tokens_BT)) for p in (params, bits))
    np.testing.assert_allclose(ours, plain, atol=0.02 * np.abs(plain).max())


def test_a_vector_longer_than_one_loop_adds_up_is_multiplied_in_parts(monkeypatch):
    monkeypatch.setattr(packed, "LONGEST", 5)
    random = np.random.default_rng(0)
    x_I, matrix_OI = random.standard_normal(12, np.float32), random.standard_normal((3, 12), np.float32)
    found = packed.product(x_I[None, None], matrix_OI.astype(jnp.bfloat16), None)
    expected = matrix_OI.astype(jnp.bfloat16).astype(np.float64) @ x_I
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-5)


def test_a_packed_network_writes_from_its_cache_what_it_gives_in_full():
    module = build(tiny(tied_embeddings=True))
    params = packed.pack(module, random_params(module), "int8")
    prompt = random_tokens(5).tolist()
    (chunk,) = generate(module, params, [prompt], Sampling(temperature=0), max_tokens=6, seeds=[0], ends=[-1])
    text_BT = np.array([[*prompt, *chunk.tokens_BC[0]]])
    logits_BTV = np.asarray(jax.jit(module.apply)({"params": params}, text_BT))
    np.testing.assert_array_equal(chunk.tokens_BC[0], logits_BTV[0, 4:-1].argmax(-1))


def test_a_kind_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"--weights=int4.*bfloat16 and int8"):
        packed.pack(build(tiny()), {}, "int4")
