"""Attention to a cache, block by block, is attention with the weights written out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.kernels import cached, dense
from model.masks import Sight

L, B, T, S, K, N, H = 2, 3, 2, 40, 2, 4, 8  # 40 slots are blocks of 8.
QUERIES_BT = np.array([[3, 4], [38, 39], [20, 21]], np.int32)

CASES = {
    "plain": {},
    "window": {"window": jnp.int32(6)},
    "no window among windows": {"window": jnp.int32(0)},
    "softcap": {"softcap": 2.0},
    "alibi": {"slopes_N": jnp.linspace(0.1, 0.7, N)},
    "sinks": {"sinks_N": jnp.linspace(-2.0, 3.0, N)},
    "bias": {"bias_BNTS": jnp.asarray(np.random.default_rng(3).normal(size=(1, N, T, S)), jnp.float32)},
}


def arrays():
    random = np.random.default_rng(0)
    shapes = (B, T, N, H), (L, B, S, K, H), (L, B, S, K, H)
    return [jnp.asarray(2 * random.normal(size=shape), jnp.float32) for shape in shapes]


def sight(queries_BT=QUERIES_BT):
    keys_BS = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (len(queries_BT), S))
    return Sight(jnp.asarray(queries_BT), keys_BS, causal=True)


@pytest.mark.parametrize("name", CASES)
def test_blocks_of_a_cache_are_read_as_all_of_it(name):
    query, key, value = arrays()
    more = dict(CASES[name])
    ours = jax.jit(lambda *x: cached(*x, jnp.int32(1), sight(), scale=0.3, **more))(query, key, value)
    window, slopes, bias = more.pop("window", None), more.pop("slopes_N", None), more.pop("bias_BNTS", None)
    if slopes is not None:
        bias = -slopes[None, :, None, None] * jnp.abs(sight().distance()).astype(jnp.float32)[:, None]
    expected, _, _ = dense(query, key[1], value[1], sight().visible(window), bias, scale=0.3, **more)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_what_lies_behind_the_longest_text_is_not_read():
    query, key, value = arrays()
    short_BT = np.array([[3, 4], [8, 9], [14, 15]], np.int32)
    nan = value.at[:, :, 16:].set(jnp.nan)
    ours = cached(query, key, nan, jnp.int32(0), sight(short_BT), scale=0.3)
    assert np.isfinite(ours).all()
    ours = cached(query, key, nan, jnp.int32(0), sight(QUERIES_BT), scale=0.3)
    assert not np.isfinite(ours).all()


def test_a_text_is_the_same_to_the_bit_however_long_its_neighbours_are():
    query, key, value = arrays()
    for window in (None, jnp.int32(5)):
        outputs = []
        for neighbour in ([4, 5], [38, 39]):
            queries_BT = np.array([[3, 4], neighbour, [20, 21]], np.int32)
            outputs.append(cached(query, key, value, jnp.int32(1), sight(queries_BT), scale=0.3, window=window))
        np.testing.assert_array_equal(outputs[0][::2], outputs[1][::2])
        assert np.any(outputs[0][1] != outputs[1][1])
