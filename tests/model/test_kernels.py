"""softmax(QK^T/sqrt(d))V: every kernel against float64 numpy and against `jax.nn.dot_product_attention`."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

from configs import schema
from model import kernels
from model.sharding import make_mesh

B, T, S, H = 2, 5, 7, 3  # Odd sizes: nothing is a multiple of anything.
HEADS = {"mha": (4, 4), "gqa": (6, 2), "mqa": (3, 1)}
CAUSAL = np.broadcast_to(np.arange(T)[:, None] + 2 >= np.arange(S), (B, T, S))
SEGMENT_S = np.array([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 3, 3]])
MASKS = {
    "all": np.ones((B, T, S), bool),
    "causal": CAUSAL,
    "window": CAUSAL & (np.arange(T)[:, None] + 2 - np.arange(S) < 2),
    "segments": CAUSAL & (SEGMENT_S[:, 2:, None] == SEGMENT_S[:, None, :]),
}


def numpy_attention(inputs, mask_BTS, softcap=0.0):
    """As in the paper, in float64; query head n reads key head n // (N/K), a sink is one more key without a value."""
    q, k, v = (inputs[name].swapaxes(1, 2) for name in ("query", "key", "value"))
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    scores = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[3])
    scores = softcap * np.tanh(scores / softcap) if softcap else scores
    exp = np.exp(scores + inputs.get("bias", 0)) * mask_BTS[:, None]
    sinks = np.exp(inputs["sinks"])[:, None, None] if "sinks" in inputs else 0
    return (exp / (exp.sum(-1, keepdims=True) + sinks) @ v).swapaxes(1, 2)


def numpy_gradients(inputs, mask_BTS, cotangent, softcap=0.0, step=1e-5):
    """Central differences in float64 of sum(output * cotangent)."""
    gradients = {}
    for name, array in inputs.items():
        gradients[name] = np.zeros(array.shape)
        for index in np.ndindex(array.shape):
            moved = [array.copy(), array.copy()]
            moved[0][index] += step
            moved[1][index] -= step
            up, down = (numpy_attention({**inputs, name: m}, mask_BTS, softcap) for m in moved)
            gradients[name][index] = np.sum((up - down) * cotangent) / (2 * step)
    return gradients


def make_inputs(heads, *more, seed=0, S=S):
    N, K = HEADS[heads]
    random = np.random.default_rng(seed)
    shapes = {"query": (B, T, N, H), "key": (B, S, K, H), "value": (B, S, K, H), "bias": (B, N, T, S), "sinks": (N,)}
    return {name: random.normal(size=shapes[name]) for name in ("query", "key", "value", *more)}


def run(kernel, inputs, mask_BTS, cotangent_BTNH, softcap=0.0):
    """Output and gradients of sum(output * cotangent)."""
    # JAX's own code mixes bfloat16 and float32, ours does not.
    with jax.numpy_dtype_promotion("standard" if kernel in ("fused", "jax") else "strict"):
        return _run(kernel, inputs, mask_BTS, cotangent_BTNH, softcap)


@partial(jax.jit, static_argnames=("kernel", "softcap"))
def _run(kernel, inputs, mask_BTS, cotangent_BTNH, softcap):
    def attend(inputs):
        arguments = (inputs["query"], inputs["key"], inputs["value"], mask_BTS, inputs.get("bias"))
        if kernel == "dense":
            output_BTNH = kernels.dense(*arguments, softcap=softcap, sinks_N=inputs.get("sinks"))[0]
        elif kernel == "chunked":
            sinks_N = inputs.get("sinks")
            output_BTNH = kernels.chunked(*arguments, scale=H**-0.5, softcap=softcap, sinks_N=sinks_N)
        elif kernel == "fused":
            output_BTNH = kernels.fused(*arguments)
        else:
            bias_BNTS = inputs["bias"].astype(inputs["query"].dtype)
            output_BTNH = jax.nn.dot_product_attention(*arguments[:3], bias=bias_BNTS, mask=mask_BTS[:, None])
        return jnp.sum(output_BTNH.astype(jnp.float32) * cotangent_BTNH), output_BTNH

    gradients, output_BTNH = jax.grad(attend, has_aux=True)(inputs)
    return output_BTNH, gradients


def as_jax(inputs, dtype):
    """In `dtype`, but for what is float32 whatever the network computes with."""
    return {name: jnp.asarray(x, jnp.float32 if name in ("bias", "sinks") else dtype) for name, x in inputs.items()}


def check(kernel, inputs, mask_BTS, softcap=0.0, dtype="float32", tolerance=2e-5):
    cast = as_jax(inputs, dtype)
    exact = {name: np.asarray(x.astype(jnp.float32), np.float64) for name, x in cast.items()}
    cotangent = np.random.default_rng(1).normal(size=inputs["query"].shape).astype(np.float32)
    output, gradients = run(kernel, cast, mask_BTS, cotangent, softcap)
    assert output.dtype == dtype
    expected = numpy_attention(exact, mask_BTS, softcap)
    np.testing.assert_allclose(np.asarray(output, np.float64), expected, atol=tolerance, err_msg="output")
    for name, gradient in numpy_gradients(exact, mask_BTS, cotangent, softcap).items():
        found = np.asarray(gradients[name].astype(jnp.float32))
        np.testing.assert_allclose(found, gradient, atol=tolerance, err_msg=f"gradient of {name}")


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("kernel", ["dense", "fused"])
def test_kernel_and_its_gradients_equal_numpy_in_float64(kernel, heads, mask):
    check(kernel, make_inputs(heads, "bias"), MASKS[mask])


def test_kernels_need_no_bias():
    for kernel in ("dense", "fused"):
        check(kernel, make_inputs("gqa"), MASKS["causal"])


def test_softcap_sinks_and_bias_together_equal_numpy():
    check("dense", make_inputs("gqa", "bias", "sinks"), MASKS["causal"], softcap=0.7)


# Rows that see themselves: five tokens make chunks of two, two and one.
OWN = {
    "causal": np.broadcast_to(np.tri(T, dtype=bool), (B, T, T)),
    "window": np.broadcast_to(np.tri(T, dtype=bool) & ~np.tri(T, k=-2, dtype=bool), (B, T, T)),
    "segments": np.tri(T, dtype=bool) & (SEGMENT_S[:, :T, None] == SEGMENT_S[:, None, :T]),
}


@pytest.mark.parametrize("mask", OWN)
@pytest.mark.parametrize("heads", HEADS)
def test_chunked_and_its_gradients_equal_numpy_in_float64(heads, mask):
    check("chunked", make_inputs(heads, "bias", S=T), OWN[mask])


def test_chunked_with_softcap_sinks_and_bias_equals_numpy():
    check("chunked", make_inputs("gqa", "bias", "sinks", S=T), OWN["segments"], softcap=0.7)


def test_chunked_in_bfloat16_is_as_exact_as_bfloat16():
    check("chunked", make_inputs("mqa", S=T), OWN["causal"], dtype="bfloat16", tolerance=0.04)


def test_chunked_makes_no_score_of_a_chunk_with_keys_behind_it():
    inputs = as_jax(make_inputs("mha", S=T), "float32")
    attend = lambda inputs: run("chunked", inputs, jnp.ones((B, T, T), bool), jnp.ones((B, T, 4, H)))[0]  # noqa: E731
    for token, seen in ((0, 2), (1, 2), (3, 4), (4, 5)):
        behind = {**inputs, **{name: inputs[name].at[:, seen:].set(jnp.nan) for name in ("key", "value")}}
        assert np.isfinite(attend(behind)[:, token]).all()
        assert seen == T or not np.isfinite(attend(inputs | behind)[:, seen]).any()


# bfloat16 keeps 8 bits, so 1 part in 256 of values of about 1; a sum over 7 keys loses a little more.
@pytest.mark.parametrize("kernel", ["dense", "fused"])
def test_kernel_in_bfloat16_is_as_exact_as_bfloat16(kernel):
    check(kernel, make_inputs("gqa", "bias"), MASKS["causal"], dtype="bfloat16", tolerance=0.04)


@pytest.mark.parametrize("kernel", ["dense", "fused"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 0.03)])
def test_kernel_and_its_gradients_equal_those_of_jax(kernel, dtype, tolerance):
    inputs = as_jax(make_inputs("gqa", "bias"), dtype)
    cotangent = np.random.default_rng(1).normal(size=inputs["query"].shape).astype(np.float32)
    ours, theirs = (run(name, inputs, MASKS["segments"], cotangent) for name in (kernel, "jax"))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), atol=tolerance)


@jax.jit
def dense(inputs, mask_BTS):
    arguments = (inputs["query"], inputs["key"], inputs["value"], mask_BTS, inputs.get("bias"))
    return kernels.dense(*arguments, sinks_N=inputs.get("sinks"))


def test_weights_sum_to_one_and_are_exactly_zero_where_hidden():
    inputs = make_inputs("gqa", "bias")
    inputs["query"] *= 30  # Scores of a hundred: exp alone would overflow.
    _, weights_BNTS, scores_BNTS = dense(as_jax(inputs, "float32"), MASKS["segments"])
    np.testing.assert_allclose(np.asarray(weights_BNTS).sum(-1), 1, atol=1e-6)
    hidden = np.broadcast_to(~MASKS["segments"][:, None], weights_BNTS.shape)
    assert np.abs(scores_BNTS).max() > 90
    assert np.all(np.asarray(weights_BNTS)[hidden] == 0)


def test_sinks_take_the_share_that_softmax_gives_one_more_key():
    inputs = as_jax(make_inputs("gqa", "sinks"), "float32")
    _, weights_BNTS, scores_BNTS = dense(inputs, MASKS["all"])
    sinks = np.broadcast_to(np.asarray(inputs["sinks"])[None, :, None, None], (*scores_BNTS.shape[:3], 1))
    logits = np.concatenate([np.asarray(scores_BNTS), sinks], -1, dtype=np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(weights_BNTS, shares[..., :-1], atol=1e-6)


@pytest.mark.parametrize("kernel", ["dense", "fused"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_that_sees_nothing_makes_no_nan(kernel, dtype):
    mask_BTS = MASKS["causal"].copy()
    mask_BTS[:, 2] = False
    inputs = make_inputs("gqa", "bias")
    cotangent = np.ones(inputs["query"].shape, np.float32)
    for leaf in jax.tree.leaves(run(kernel, as_jax(inputs, dtype), mask_BTS, cotangent)):
        assert np.isfinite(np.asarray(leaf, np.float32)).all()
    _, gradients = run(kernel, as_jax(inputs, dtype), mask_BTS, cotangent)
    assert not np.asarray(gradients["query"], np.float32)[:, 2].any()


@pytest.mark.parametrize(
    ("T", "S", "H", "dtype", "expected"),
    [
        (8, 8, 64, "bfloat16", "cudnn"),
        (8, 8, 64, "float32", None),
        (7, 8, 64, "bfloat16", None),
        (8, 7, 64, "bfloat16", None),
        (8, 8, 12, "bfloat16", None),
        (8, 8, 256, "bfloat16", None),
    ],
)
def test_fused_on_a_gpu_is_cudnn_where_cudnn_can_do_it(monkeypatch, T, S, H, dtype, expected):
    asked = []
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    attend = lambda query, *_, implementation, **__: asked.append(implementation) or query  # noqa: E731
    monkeypatch.setattr(jax.nn, "dot_product_attention", attend)
    query_BTNH, key_BSKH = jnp.zeros((1, T, 2, H), dtype), jnp.zeros((1, S, 1, H), dtype)
    kernels.fused(query_BTNH, key_BSKH, key_BSKH, jnp.ones((1, T, S), bool))
    assert asked == [expected]


AUTO = [
    ("cpu", {}, {}, "chunked"),
    ("cpu", {"attention_sinks": True, "attention_softcap": 5.0, "position": "relative"}, {}, "chunked"),
    ("cpu", {"network": "encoder"}, {}, "dense"),
    ("gpu", {}, {}, "fused"),
    ("gpu", {"attention_softcap": 5.0}, {}, "dense"),
    ("gpu", {"attention_sinks": True}, {}, "dense"),
    ("tpu", {}, {}, "splash"),
    ("tpu", {"attention_softcap": 5.0, "window": 3}, {}, "splash"),
    ("tpu", {"attention_sinks": True}, {}, "dense"),
    ("cpu", {}, {"sequence": 2}, "gather"),
    ("cpu", {}, {"sequence": 4}, "ring"),
    ("gpu", {}, {"sequence": 4}, "ring"),
    ("tpu", {}, {"sequence": 2}, "splash"),
    ("tpu", {}, {"sequence": 8, "data": 1}, "ring"),
    ("tpu", {"position": "alibi"}, {"sequence": 2}, "gather"),
    ("cpu", {"position": "relative"}, {"sequence": 4}, "dense"),
]


@pytest.mark.parametrize(("platform", "settings", "axes", "kernel"), AUTO)
def test_auto_picks_by_platform_mesh_and_what_is_asked(platform, settings, axes, kernel, monkeypatch):
    monkeypatch.setattr(kernels, "platform", lambda: platform)
    config, length = tiny(**settings), 1024
    query, key = (jax.ShapeDtypeStruct((8, length, heads, 4), jnp.float32) for heads in (4, 2))
    with jax.set_mesh(make_mesh(schema.Mesh(**axes))):
        causal, biased = config.model.network == "decoder", config.model.position == "relative"
        assert kernels.choose(config, query, key, key, causal=causal, biased=biased) == kernel


def test_on_a_cpu_short_rows_are_dense():
    x = jax.ShapeDtypeStruct((8, kernels.LEAST_CHUNKED - 1, 4, 4), jnp.float32)
    assert kernels.choose(tiny(), x, x, x, causal=True) == "dense"


@pytest.mark.parametrize(
    ("kernel", "shape", "reason"),
    [
        ("splash", (8, 100, 4, 4), "lengths 100 and 100 are not multiples of 128"),
        ("ring", (6, 128, 4, 4), "does not divide rows, tokens or heads of (6, 128, 4, 4)"),
        ("gather", (8, 4 * 1021, 4, 4), "lengths 1021 and 4084 have no fitting divisor"),
        ("chunked", (8, 128, 4, 4), "it is for tokens that see none behind them in their own row"),
    ],
)
def test_a_kernel_that_cannot_take_the_shape_gives_way_to_dense_and_says_so(kernel, shape, reason, caplog):
    kernels._tell.cache_clear()
    x, mesh = jax.ShapeDtypeStruct(shape, jnp.float32), {"sequence": 4} if kernel == "gather" else {}
    with jax.set_mesh(make_mesh(schema.Mesh(**mesh))):
        for _ in range(2):
            assert kernels.choose(tiny(kernel=kernel), x, x, x, causal=False) == "dense"
    (record,) = caplog.records
    assert record.getMessage().startswith(f"--model.kernel={kernel} gives way to dense: ")
    assert reason in record.getMessage()
