"""The encoder: it sees both ways, its causal twin does not, and it is the encoder of a translator."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from tiny import random_params, random_tokens, tiny

from model import Source, build
from model.lens.record import record
from model.sharding import parameter_shapes

TOKENS_BT = random_tokens(2, 9)
AT = 5


def differs(module, params, *changed):
    """For each of some tokens, whether the logits at AT change, bit for bit, when it does."""
    apply = jax.jit(module.apply)
    ours = np.asarray(apply({"params": params}, TOKENS_BT))
    answers = []
    for token in changed:
        other_BT = TOKENS_BT.copy()
        other_BT[:, token] = (other_BT[:, token] + 1) % 32
        answers.append(bool((ours[:, AT] != np.asarray(apply({"params": params}, other_BT))[:, AT]).any()))
    return answers


@pytest.mark.parametrize("position", ["rope", "relative"])
def test_an_encoder_sees_what_follows_and_its_causal_twin_does_not(position):
    encoder = build(tiny(network="encoder", position=position))
    twin = build(tiny(position=position))
    params = random_params(encoder)
    assert jax.tree.structure(parameter_shapes(twin)) == jax.tree.structure(params)
    assert differs(encoder, params, 2, 8) == [True, True]
    assert differs(twin, params, 2, 8) == [True, False]


def test_an_encoder_s_weights_look_ahead_but_not_into_other_texts():
    module = build(tiny(network="encoder"))
    params = random_params(module)
    weights = np.asarray(record(module, params, TOKENS_BT)["layers/attention/weights"])
    assert (weights > 0).all()
    segments_BT = np.repeat([[1, 1, 1, 1, 2, 2, 2, 0, 0]], 2, axis=0).astype(np.int32)
    positions_BT = np.repeat([[0, 1, 2, 3, 0, 1, 2, 0, 0]], 2, axis=0).astype(np.int32)
    apply = jax.jit(module.apply)
    packed_BTV = apply({"params": params}, TOKENS_BT, positions_BT, segments_BT)
    alone_BTV = apply({"params": params}, TOKENS_BT[:, 4:7])
    np.testing.assert_allclose(packed_BTV[:, 4:7], alone_BTV, atol=1e-4)


@pytest.mark.parametrize(
    "settings", [{}, {"position": "learned", "norm": "layer", "biases": True}, {"norm_position": "post"}]
)
def test_an_encoder_is_the_encoder_of_a_translator_under_the_same_names(settings):
    encoder, translator = (build(tiny(network=kind, **settings)) for kind in ("encoder", "encoder_decoder"))
    params = random_params(encoder)
    grafted = random_params(translator, seed=1)
    for name in params.keys() - {"embedding"}:
        want, have = (jax.tree.map(lambda x: x.shape, tree) for tree in (grafted["encoder"][name], params[name]))
        assert want == have
        grafted["encoder"][name] = params[name]
    assert set(grafted["encoder"]) == params.keys() - {"embedding"}
    grafted["embedding"] = params["embedding"]

    positions_BT = np.repeat(np.arange(9, dtype=np.int32)[None], 2, axis=0)
    source = Source(TOKENS_BT, positions_BT, np.ones((2, 9), np.int32))
    encode = jax.jit(functools.partial(translator.apply, method="encode"))
    memory_BSD = encode({"params": grafted}, source)
    expected_BSD = record(encoder, params, TOKENS_BT, ("final",))["final"]
    np.testing.assert_allclose(memory_BSD, expected_BSD, atol=1e-5)
