"""Recurrence: Flax's cell, the papers' equations, and what packing, padding, caches and meshes must not change."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from tiny import VOCABULARY, random_params, random_tokens, tiny

from configs import schema
from configs.convert import override
from model import Source, build, lstm
from model.generate import Sampling, generate
from model.lens.record import record
from model.sharding import batch_sharding, make_mesh, param_shardings

TRANSLATE = {"network": "lstm_encoder_decoder", "encoder_layers": 3}
NETWORKS = {
    "lstm": {"network": "lstm", "scale_embeddings": True},
    "luong": {**TRANSLATE, "biases": True},
    "bahdanau": {**TRANSLATE, "alignment": "bahdanau", "tied_embeddings": False},
}
# Two texts and padding; one that fills the row.
SEGMENTS_BT = np.array([[1, 1, 1, 2, 2, 2, 2, 0, 0], [1] * 9], np.int32)
POSITIONS_BT = np.array([[0, 1, 2, 0, 1, 2, 3, 0, 0], range(9)], np.int32)
TOKENS_BT = random_tokens(2, 9)
# Their sources: of other lengths, and with padding.
SOURCE = Source(
    jnp.array(random_tokens(2, 7, seed=1)),
    jnp.array([[0, 1, 2, 3, 0, 1, 0], [0, 1, 2, 3, 4, 0, 0]], jnp.int32),
    jnp.array([[1, 1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 0, 0]], jnp.int32),
)


def network(name, **settings):
    module = build(tiny(**{**NETWORKS[name], **settings}))
    return module, random_params(module)


def packed(name):
    """The arguments of a call with packed texts."""
    return (TOKENS_BT, POSITIONS_BT, SEGMENTS_BT), {"source": None if name == "lstm" else SOURCE}


def in_float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def numpy_lstm(cell, x_TD, state=None):
    """Cells and hidden states after each token of one text, by the equations (Hochreiter & Schmidhuber 1997)."""
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    width = cell["hi"]["bias"].shape[0]
    cell_H, hidden_H = state or (np.zeros(width), np.zeros(width))
    cells, hidden = [], []
    for x_D in x_TD:
        i, f, g, o = (
            x_D @ cell[f"i{k}"]["kernel"] + hidden_H @ cell[f"h{k}"]["kernel"] + cell[f"h{k}"]["bias"] for k in "ifgo"
        )
        cell_H = sigmoid(f) * cell_H + sigmoid(i) * np.tanh(g)
        hidden_H = sigmoid(o) * np.tanh(cell_H)
        cells.append(cell_H)
        hidden.append(hidden_H)
    return np.array(cells), np.array(hidden)


def numpy_logits(config, params, tokens_T, source_S=None):
    """Logits [T,V] and alignment [T,S] of one text, in float64."""
    model, params, layer_of = config.model, in_float64(params), lambda tree, i: jax.tree.map(lambda x: x[i], tree)
    table_VD = params["embedding"]["embedding"]
    scale = np.sqrt(model.width) if model.scale_embeddings else 1.0
    starts, weights_TS = [None] * model.num_layers, None
    if source_S is not None:
        x_SD, ends = table_VD[source_S] * scale, []
        for layer in range(model.encoder_layers):
            cells = layer_of(params["encoder"]["layers"], layer)
            forward = numpy_lstm(cells["forward"], x_SD)
            backward = [states[::-1] for states in numpy_lstm(cells["backward"], x_SD[::-1])]
            x_SD = np.concatenate([forward[1], backward[1]], axis=-1)
            ends.append(tuple(np.concatenate([f[-1], b[0]]) for f, b in zip(forward, backward, strict=True)))
        starts = ends[-model.num_layers :]
    x_TD = table_VD[tokens_T] * scale
    for layer in range(model.num_layers):
        x_TD = numpy_lstm(layer_of(params["layers"]["lstm"], layer), x_TD, starts[layer])[1]
    if source_S is not None:
        linear = lambda name, x: x @ params["alignment"][name]["kernel"] + params["alignment"][name].get("bias", 0)  # noqa: E731
        if model.alignment == "luong":
            scores_TS = x_TD @ linear("source", x_SD).T
        else:
            bent_TSD = np.tanh(linear("state", x_TD)[:, None] + linear("source", x_SD)[None])
            scores_TS = bent_TSD @ params["alignment"]["score"]["kernel"][:, 0]
        exp_TS = np.exp(scores_TS - scores_TS.max(-1, keepdims=True))
        weights_TS = exp_TS / exp_TS.sum(-1, keepdims=True)
        x_TD = np.tanh(linear("combine", np.concatenate([weights_TS @ x_SD, x_TD], axis=-1)))
    output_DV = table_VD.T if model.tied_embeddings else params["output"]["kernel"]
    return x_TD @ output_DV, weights_TS


@pytest.mark.parametrize("reverse", [False, True])
def test_the_recurrence_and_its_gradient_are_those_of_flax_own_loop(reverse):
    random = np.random.default_rng(0)
    x_BTD, weight_BTH = (jnp.asarray(random.normal(size=(3, 8, width)), jnp.float32) for width in (16, 12))
    ours = lstm.Recurrence(tiny(network="lstm"), 12, reverse)
    begins_BT = jnp.arange(8)[None] == jnp.full((3, 1), 7 if reverse else 0)
    params = jax.jit(ours.init)(jax.random.key(0), x_BTD, begins_BT, begins_BT | True)["params"]
    theirs = nn.RNN(nn.OptimizedLSTMCell(12), reverse=reverse, keep_order=True)
    shapes = jax.eval_shape(theirs.init, jax.random.key(0), x_BTD)["params"]["cell"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)

    def our_sum(params, x_BTD):
        hidden_BTH = ours.apply({"params": params}, x_BTD, begins_BT, begins_BT | True)[1]
        return jnp.sum(hidden_BTH * weight_BTH), hidden_BTH

    def their_sum(params, x_BTD):
        hidden_BTH = theirs.apply({"params": {"cell": params}}, x_BTD)
        return jnp.sum(hidden_BTH * weight_BTH), hidden_BTH

    found, expected = (
        jax.jit(jax.value_and_grad(of, (0, 1), has_aux=True))(params, x_BTD) for of in (our_sum, their_sum)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_the_gradient_of_restarts_and_padding_is_that_of_differentiating_the_loop():
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)  # noqa: E731
    weights, before, start = (
        (draw(4, 12), draw(3, 12), draw(12)),
        (draw(2, 3), draw(2, 3)),
        (draw(5, 2, 3), draw(5, 2, 3)),
    )
    x_TBD, wanted = draw(5, 2, 4), (draw(5, 2, 3), draw(5, 2, 3))
    begins_TB, real_TB = (jnp.asarray(random.random((5, 2)) < share) for share in (0.4, 0.7))

    def gradient(of, reverse, start):
        def total(*arguments):
            states = of(reverse, *arguments, begins_TB, real_TB)
            return sum(jnp.sum(x * w) for x, w in zip(states, wanted, strict=True))

        return jax.jit(jax.grad(total, (0, 1, 2, 3) if start else (0, 1, 2)))(weights, before, x_TBD, start)

    for reverse, begun in ((False, start), (True, None)):
        found = gradient(lstm.recur, reverse, begun)
        expected = gradient(lambda *arguments: lstm._loop(*arguments)[0], reverse, begun)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_packed_texts_give_the_logits_and_alignments_that_numpy_gives_each_alone(name):
    module, params = network(name)
    arguments, options = packed(name)
    found_BTV, variables = jax.jit(
        lambda p: module.apply({"params": p}, *arguments, **options, mutable=["intermediates"])
    )(params)
    for row, segment in ((0, 1), (0, 2), (1, 1)):
        text_T = SEGMENTS_BT[row] == segment
        source_S = None if name == "lstm" else np.asarray(SOURCE.segments_BS[row]) == segment
        source = None if name == "lstm" else np.asarray(SOURCE.tokens_BS)[row][source_S]
        logits_TV, weights_TS = numpy_logits(module.config, params, TOKENS_BT[row][text_T], source)
        np.testing.assert_allclose(found_BTV[row][text_T], logits_TV, atol=1e-4)
        if name != "lstm":
            found_TS = variables["intermediates"]["layers/cross_attention/weights"][0, row, 0][text_T]
            np.testing.assert_allclose(found_TS[:, source_S], weights_TS, atol=1e-5)
            assert not found_TS[:, ~source_S].any()


@pytest.mark.parametrize("name", NETWORKS)
def test_decoding_from_the_cache_is_the_full_pass(name):
    module, params = network(name)
    prompts = [random_tokens(length, seed=length).tolist() for length in (2, 7, 4)]
    sources = None if name == "lstm" else [[5, 6, 7, 8, 1], [4, 3], [9, 10, 11, 12, 13, 14, 15]]
    settings = {"max_tokens": 6, "seeds": [0, 1, 2], "ends": [VOCABULARY + 1], "top": VOCABULARY, "sources": sources}
    (written,) = generate(module, params, prompts, Sampling(), **settings)
    texts = [[*prompt, *new] for prompt, new in zip(prompts, written.tokens_BC.tolist(), strict=True)]
    padded = lambda rows: jnp.array([[*row, *[0] * (13 - len(row))] for row in rows], jnp.int32)  # noqa: E731
    source = Source.of(padded(sources), jnp.array(list(map(len, sources)))) if sources else None
    whole = jax.jit(lambda params: jax.nn.log_softmax(module.apply({"params": params}, padded(texts), source=source)))
    for row, (whole_TV, prompt) in enumerate(zip(whole(params), prompts, strict=True)):
        found_TV = np.zeros((6, VOCABULARY), np.float32)
        np.put_along_axis(found_TV, written.top_tokens_BCK[row], written.top_logprobs_BCK[row], axis=1)
        np.testing.assert_allclose(found_TV, whole_TV[len(prompt) - 1 : len(prompt) + 5], atol=1e-4)


@pytest.mark.parametrize("name", ["lstm", "luong"])
def test_eight_devices_compute_the_loss_and_the_gradient_that_one_computes(name):
    module, params = network(name, num_layers=1, encoder_layers=1)
    arguments = [np.tile(x, (4, 1)) for x in packed(name)[0]]
    source = None if name == "lstm" else jax.tree.map(lambda x: jnp.tile(x, (4, 1)), SOURCE)

    def loss(params, arguments, source):
        logits_BTV = module.apply({"params": params}, *arguments, source=source)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits_BTV, arguments[0]))

    gradient = jax.value_and_grad(loss)
    expected = jax.jit(gradient)(params, arguments, source)
    mesh = make_mesh(schema.Mesh(data=2, fsdp=2, tensor=2))
    lies = param_shardings(module, mesh)
    assert "tensor" in str(lies["layers"]["lstm"]["hf"]["kernel"].spec)
    spread = jax.device_put((arguments, source), batch_sharding(mesh))
    with jax.set_mesh(mesh):
        found = jax.jit(gradient)(jax.device_put(params, lies), *spread)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


@pytest.mark.parametrize(
    ("name", "settings"), [("lstm", {"layers": "unroll", "remat": "dots"}), ("bahdanau", {"remat": "full"})]
)
def test_unrolling_and_remat_change_neither_the_gradient_nor_where_parameters_stand(name, settings):
    arguments, options = packed(name)

    def gradient(**settings):
        module, params = network(name, **{"encoder_layers": 2, **settings})
        of = lambda params: jnp.sum(jnp.sin(module.apply({"params": params}, *arguments, **options)))  # noqa: E731
        return jax.jit(jax.grad(of))(params)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), gradient(**settings), gradient())


@pytest.mark.parametrize("name", ["lstm", "bahdanau"])
def test_bfloat16_gives_about_the_logits_of_float32(name):
    arguments, options = packed(name)

    def logits(dtype):
        module, params = network(name, dtype=dtype, param_dtype=dtype)
        return jax.jit(lambda params: module.apply({"params": params}, *arguments, **options))(params)

    expected, found = logits("float32"), logits("bfloat16")
    assert found.dtype == jnp.float32
    assert 0 < jnp.abs(found - expected).max() < 0.05 * jnp.abs(expected).max()


def test_a_state_is_kept_until_learning_says_otherwise():
    config = tiny(network="lstm")
    params = jax.jit(build(config).init)(jax.random.key(0), TOKENS_BT)["params"]["layers"]["lstm"]
    for gate, start in zip("ifgo", (0, 1, 0, 0), strict=True):
        np.testing.assert_array_equal(params[f"h{gate}"]["bias"], np.full((2, 16), start))


@pytest.mark.parametrize("name", ["lstm", "luong"])
def test_dropout_differs_between_rows_and_depends_on_their_numbers_alone(name):
    module, params = network(name, dropout=0.5)
    source = None if name == "lstm" else Source.of(jnp.tile(jnp.array([[3, 4, 5]], jnp.int32), (2, 1)))

    @jax.jit
    def logits(rows_B):
        return module.apply(
            {"params": params}, np.tile(TOKENS_BT[:1], (2, 1)), rows_B=rows_B, source=source,
            deterministic=False, rngs={"dropout": jax.random.key(0)},
        )  # fmt: skip

    one, other = logits(jnp.array([0, 5])), logits(jnp.array([5, 3]))
    np.testing.assert_array_equal(one[1], other[0])
    assert not np.allclose(one[0], one[1])


def test_recorded_gates_are_those_that_made_the_hidden_states():
    module, params = network("lstm")
    places = [f"layers/lstm/{gate}" for gate in ("input", "forget", "cell", "output")]
    found = record(module, params, TOKENS_BT, [*places, "layers/residual/after"])
    i, f, g, o = (np.asarray(found[place]) for place in places)
    assert i.shape == (2, 2, 9, 16)
    cell_LBD = np.zeros((2, 2, 16))
    for time in range(9):
        cell_LBD = f[:, :, time] * cell_LBD + i[:, :, time] * g[:, :, time]
        hidden_LBD = o[:, :, time] * np.tanh(cell_LBD)
        np.testing.assert_allclose(found["layers/residual/after"][:, :, time], hidden_LBD, atol=1e-5)
    plain_BTV = jax.jit(lambda params: module.apply({"params": params}, TOKENS_BT))(params)
    np.testing.assert_allclose(found["logits"], plain_BTV, atol=1e-5)


def test_a_network_is_told_what_source_it_lacks_or_cannot_read():
    module, params = network("lstm")
    with pytest.raises(ValueError, match="lstm has no source"):
        module.apply({"params": params}, TOKENS_BT, source=SOURCE)
    module, params = network("luong")
    with pytest.raises(ValueError, match="needs a source"):
        module.apply({"params": params}, TOKENS_BT)


def learned(name, batch_of, steps, **settings):
    """The share of right answers after a few steps of Adam; `batch_of(random)` is (inputs, targets, mask, source)."""
    config = override(
        tiny(**{**NETWORKS[name], "encoder_layers": 1, "num_layers": 1, "width": 48, **settings}),
        {"tokenizer.vocab_size": 10},
    )
    module, optimizer = build(config), optax.adam(optax.linear_schedule(1e-2, 1e-3, steps))
    random = np.random.default_rng(0)
    inputs, _, _, source = batch_of(random)
    params = jax.jit(module.init)(jax.random.key(0), inputs, source=source)["params"]

    @jax.jit
    def step(params, state, inputs, targets, mask, source):
        def loss(params):
            logits_BTV = module.apply({"params": params}, inputs, source=source)
            losses_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, targets)
            return jnp.mean(losses_BT, where=mask), logits_BTV

        grads, logits_BTV = jax.grad(loss, has_aux=True)(params)
        with jax.numpy_dtype_promotion("standard"):  # Optax mixes floats with integer counters.
            updates, state = optimizer.update(grads, state)
        right = jnp.mean((jnp.argmax(logits_BTV, -1) == targets).astype(jnp.float32), where=mask)
        return optax.apply_updates(params, updates), state, right

    state = optimizer.init(params)
    for _ in range(steps):
        params, state, right = step(params, state, *batch_of(random))
    return float(right)


def test_the_language_model_learns_to_repeat_what_it_read():
    def batch_of(random):
        text_BT = np.concatenate([random.integers(1, 10, (32, 3), np.int32)] * 3, axis=1)
        return text_BT[:, :-1], text_BT[:, 1:], np.tile(np.arange(8) >= 2, (32, 1)), None

    assert learned("lstm", batch_of, 200) > 0.95


@pytest.mark.parametrize("name", ["luong", "bahdanau"])
def test_the_encoder_decoder_learns_to_write_a_sentence_backwards(name):
    def batch_of(random):
        source_BS = random.integers(1, 10, (32, 6), np.int32)
        targets_BT = source_BS[:, ::-1]
        inputs_BT = np.pad(targets_BT[:, :-1], ((0, 0), (1, 0)))
        return inputs_BT, targets_BT, np.ones((32, 6), bool), Source.of(jnp.asarray(source_BS))

    assert learned(name, batch_of, 150) > 0.9
