"""The encoder-decoder: what the cache, packing, padding and the mesh must not change, and what it may see."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny import random_params, random_tokens, tiny, with_other_last_bits

from configs import schema
from model import Source, build
from model.generate import Sampling, generate
from model.generate.cache import empty_cache
from model.lens.record import record
from model.sharding import batch_sharding, make_mesh, param_shardings

SETTINGS = [
    {"norm_position": "post", "position": "sinusoidal", "scale_embeddings": True, "biases": True, "norm": "layer",
     "output_bias": True, "gated": False, "activation": "relu"},
    {"position": "relative", "relative_buckets": 8, "relative_distance": 6, "attention_scale": 1.0,
     "logit_scale": 0.25, "encoder_layers": 3},
    {"position": "rope", "layers": "unroll", "kernel": "fused", "attention": "mqa"},
    {"position": "learned", "norm_position": "output", "tied_embeddings": False, "window": 3, "attention": "latent"},
]  # fmt: skip
SOURCES = [[5, 6, 7, 8, 1], [4, 3, 2], [9, 10, 11, 12, 13, 14, 15]]
TARGETS = [[1, 2, 3, 4, 5], [1, 20, 21, 22, 23], [1, 9, 8, 7, 6]]


def network(**settings):
    module = build(tiny(network="encoder_decoder", **settings))
    return module, {"params": random_params(module)}, jax.jit(module.apply, static_argnames="mutable")


def padded(rows, length):
    return Source.of(
        jnp.array([[*row, *[0] * (length - len(row))] for row in rows], jnp.int32),
        jnp.array([len(row) for row in rows], jnp.int32),
    )


@pytest.mark.parametrize("settings", SETTINGS)
def test_decoding_from_the_cache_is_the_full_pass(settings):
    module, variables, apply = network(**settings)
    tokens_BT, source = jnp.array(TARGETS, jnp.int32), padded(SOURCES, 8)
    whole_BTV = apply(variables, tokens_BT, source=source)
    variables["cache"] = empty_cache(module.config, 3, 8, 8)
    parts = []
    for first, last in ((0, 2), (2, 3), (3, 5)):
        positions_BT = jnp.broadcast_to(jnp.arange(first, last), (3, last - first))
        logits_BTV, kept = apply(
            variables, tokens_BT[:, first:last], positions_BT, source=None if first else source, mutable=("cache",)
        )
        variables |= kept
        parts.append(logits_BTV)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole_BTV, atol=5e-5)


@pytest.mark.parametrize(
    "settings", [*SETTINGS[:2], *(pytest.param(one, marks=pytest.mark.slow) for one in SETTINGS[2:])]
)
def test_padding_and_packing_change_nothing(settings):
    _, variables, apply = network(**settings)
    alone = [
        apply(variables, jnp.array([target], jnp.int32), source=padded([source], len(source)))[0]
        for source, target in zip(SOURCES, TARGETS, strict=True)
    ]
    together = apply(variables, jnp.array(TARGETS, jnp.int32), source=padded(SOURCES, 16))
    np.testing.assert_allclose(together, jnp.stack(alone), atol=5e-5)

    lengths, T = [len(source) for source in SOURCES], len(TARGETS[0])
    tokens_1S = jnp.array([[*np.concatenate(SOURCES), 0]], jnp.int32)
    positions_1S = jnp.array([[*np.concatenate([np.arange(length) for length in lengths]), 0]], jnp.int32)
    segments_1S = jnp.array([[*np.repeat([1, 2, 3], lengths), 0]], jnp.int32)
    packed = apply(
        variables, jnp.array(TARGETS, jnp.int32).reshape(1, -1), jnp.tile(jnp.arange(T), 3)[None],
        jnp.array([np.repeat([1, 2, 3], T)], jnp.int32), source=Source(tokens_1S, positions_1S, segments_1S),
    )  # fmt: skip
    np.testing.assert_allclose(packed[0], jnp.concatenate(alone), atol=5e-5)


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_token_sees_all_of_the_source_and_nothing_that_comes_after_it(settings):
    _, variables, apply = network(**settings)
    tokens_1T, source = jnp.array(TARGETS[:1], jnp.int32), padded(SOURCES[:1], 5)
    before = apply(variables, tokens_1T, source=source)
    changed = apply(variables, tokens_1T.at[0, 3].set(30), source=source)
    moved_T = jnp.max(jnp.abs(changed - before)[0], axis=-1)
    assert jnp.all(moved_T[:3] == 0)
    assert jnp.all(moved_T[3:] > 1e-4)
    for place in range(5):
        other = source.replace(tokens_BS=source.tokens_BS.at[0, place].set(30))
        moved_T = jnp.max(jnp.abs(apply(variables, tokens_1T, source=other) - before)[0], axis=-1)
        assert jnp.all(moved_T > 1e-5), place


def test_each_attention_is_recorded_and_its_rows_sum_to_one():
    module, variables, _ = network(**SETTINGS[0])
    places = ("layers/attention/weights", "layers/cross_attention/weights", "encoder/layers/attention/weights")
    seen = record(module, variables["params"], jnp.array(TARGETS, jnp.int32), places, source=padded(SOURCES, 8))
    for name, shape in zip(places, [(2, 3, 4, 5, 5), (2, 3, 4, 5, 8), (2, 3, 4, 8, 8)], strict=True):
        assert seen[name].shape == shape
        real = seen[name][:, :, :, :5] if "encoder" not in name else seen[name][:, 2, :, :7]
        np.testing.assert_allclose(jnp.sum(real, axis=-1), 1, atol=1e-5)
    assert jnp.all(seen[places[1]][:, 1, :, :, 3:] == 0)  # The padding of the second source.
    assert jnp.any(jnp.triu(seen[places[2]][0, 2, 0, :7, :7], 1) > 1e-3)  # The encoder looks ahead.


def test_greedy_text_is_that_of_the_full_pass_and_no_row_depends_on_its_neighbours():
    module, variables, whole = network(**SETTINGS[1])
    run = lambda rows: np.concatenate([  # noqa: E731
        chunk.tokens_BC
        for chunk in generate(
            module, variables["params"], [[1]] * len(rows), Sampling(temperature=0), max_tokens=9,
            seeds=[0] * len(rows), ends=[99], sources=rows,
        )
    ], axis=1)  # fmt: skip
    together = run(SOURCES)
    for row, source in enumerate(SOURCES):
        np.testing.assert_array_equal(run([source])[0], together[row])
        written = np.zeros((1, 10), np.int32)
        written[0, 0] = 1
        for place in range(9):  # What comes after a token does not change its logits.
            logits = whole(variables, written, source=padded([source], 8))
            written[0, place + 1] = jnp.argmax(logits[0, place])
        np.testing.assert_array_equal(written[0, 1:], together[row])


def test_a_missing_or_unwanted_source_is_refused():
    module, variables, _ = network(**SETTINGS[0])
    with pytest.raises(ValueError, match="needs a source"):
        module.apply(variables, jnp.array(TARGETS, jnp.int32))
    decoder = build(tiny())
    with pytest.raises(ValueError, match="has no source"):
        decoder.apply({"params": random_params(decoder)}, random_tokens(1, 4), source=padded(SOURCES, 8))


@pytest.mark.parametrize("settings", [SETTINGS[0], pytest.param(SETTINGS[1], marks=pytest.mark.slow)])
def test_eight_devices_compute_what_one_computes(settings):
    module, variables, _ = network(**settings)
    rows = jnp.asarray(random_tokens(8, 6))
    source = Source.of(jnp.asarray(random_tokens(8, 7, seed=1)), jnp.arange(8, dtype=jnp.int32) % 7 + 1)
    loss = lambda params, rows, source: jnp.mean(  # noqa: E731
        jax.nn.log_softmax(module.apply({"params": params}, rows, source=source))[..., 3]
    )
    loss_and_gradient = jax.jit(jax.value_and_grad(loss))
    value, gradient = loss_and_gradient(variables["params"], rows, source)
    _, nearby = loss_and_gradient(with_other_last_bits(variables["params"], 0), rows, source)
    mesh = make_mesh(schema.Mesh(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        params = jax.device_put(variables["params"], param_shardings(module, mesh))
        inputs = jax.device_put((rows, source), batch_sharding(mesh))
        spread, gradients = jax.jit(jax.value_and_grad(loss))(params, *inputs)
    np.testing.assert_allclose(spread, value, rtol=1e-5)
    flat = flatten_dict(gradients, sep="/")
    near = flatten_dict(nearby, sep="/")
    for path, expected in flatten_dict(gradient, sep="/").items():
        by_rounding = float(abs(near[path] - expected).max())
        np.testing.assert_allclose(flat[path], expected, atol=1e-5 + by_rounding, err_msg=path)
