"""Starting from a checkpoint, with all parameters or with LoRA's alone."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny import random_params, random_tokens, tiny

from configs import schema
from configs.check import check
from configs.convert import override
from configs.schema import ConfigError
from model import build
from model.lora import LORA, merged
from model.sharding import make_mesh, parameter_shapes
from train.checkpoint import Restored
from train.data.tokenizer import make_tokenizer
from train.initial import adopt, initial_params
from train.optimizer import make_optimizer
from train.run import save_run
from train.step import init_state, jit_train_step, make_train_step, state_shardings

BASE = override(tiny(), {"tokenizer.vocab_size": 257, "train.batch_size": 8, "optimizer.weight_decay": 0.1})


def saved(folder, config=BASE):
    """A run folder with random parameters, and those."""
    params = random_params(build(config))
    save_run(folder, Restored(config, params, make_tokenizer(config.tokenizer, None), 0))
    return str(folder), flatten_dict(params, sep="/")


def mesh():
    return make_mesh(schema.Mesh(data=-1), jax.devices()[:2])


def batch():
    rows = random_tokens(8, 17)
    ones = np.ones((8, 16), np.int32)
    places = np.broadcast_to(np.arange(16, dtype=np.int32), (8, 16))
    return {"inputs": rows[:, :-1], "targets": rows[:, 1:], "segments": ones, "positions": places}


def trained(config, given, steps=2):
    """Parameters before and after some steps, and the first loss."""
    module, on = build(config), mesh()
    optimizer = make_optimizer(config, parameter_shapes(module))
    state = init_state(module, optimizer, config, on, given)
    before = jax.tree.map(np.asarray, state.params)
    step = jit_train_step(
        make_train_step(module, optimizer, config), state_shardings(module, optimizer, config, on), None
    )
    losses = []
    for _ in range(steps):
        state, metrics = step(state, batch())
        losses.append(float(metrics["train/loss"]))
    return flatten_dict(before, sep="/"), flatten_dict(jax.tree.map(np.asarray, state.params), sep="/"), losses, state


def test_a_run_starts_from_the_network_and_the_parameters_of_the_checkpoint(tmp_path):
    spec, params = saved(tmp_path)
    config = adopt(override(schema.Config(), {"model.dropout": 0.5, "data.length": 16}), spec)
    assert config.model == dataclasses.replace(BASE.model, dropout=0.5, layers="unroll")
    assert config.tokenizer == schema.Tokenizer(source="checkpoint", vocab_size=257)
    before, _, _, _ = trained(override(config, {"train.batch_size": 8}), initial_params(config, mesh()), steps=1)
    assert before.keys() == params.keys()
    for path, value in params.items():
        np.testing.assert_array_equal(before[path], value, err_msg=path)


@pytest.mark.parametrize("targets", ["query,value", "all"])
def test_lora_starts_as_the_checkpoint_and_trains_its_own_parameters_alone(tmp_path, targets):
    spec, params = saved(tmp_path)
    config = override(BASE, {"init_from": spec, "model.lora_rank": 2, "model.lora_targets": targets})
    before, after, losses, state = trained(config, initial_params(config, mesh()), steps=3)
    _, _, expected, _ = trained(BASE, dict(params), steps=1)
    assert losses[0] == pytest.approx(expected[0], rel=1e-5)
    assert losses[-1] < losses[0]
    own = {path for path in before if path.endswith(LORA)}
    assert len(own) == 2 * {"query,value": 2, "all": 7}[targets]
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert moved == own
    kept = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
    assert kept < 2.1 * sum(before[path].size for path in own) + 16  # Nothing is kept for what is frozen.


def test_a_merged_network_computes_the_same(tmp_path):
    config = override(BASE, {"model.lora_rank": 2, "model.lora_targets": "all", "model.lora_alpha": 3.0})
    params, tokens_BT = random_params(build(config)), random_tokens(2, 9)
    plain, whole = merged(config, params)
    assert plain.model.lora_rank == 0
    assert flatten_dict(whole).keys() == flatten_dict(parameter_shapes(build(BASE))).keys()
    np.testing.assert_allclose(
        build(plain).apply({"params": whole}, tokens_BT), build(config).apply({"params": params}, tokens_BT), atol=2e-4
    )


def test_another_network_is_refused_with_the_parameter_that_does_not_fit(tmp_path):
    spec, _ = saved(tmp_path)
    for change, told in (({"model.width": 32}, "embedding/embedding"), ({"model.biases": True}, "bias.*none")):
        with pytest.raises(ConfigError, match=rf"--init_from=.*{told}"):
            initial_params(override(BASE, {"init_from": spec, **change}), mesh())


def test_an_encoder_becomes_the_encoder_of_a_translator(tmp_path):
    spec, params = saved(tmp_path, override(BASE, {"model.network": "encoder"}))
    wider = {"model.network": "encoder_decoder", "model.width": 32, "model.dropout": 0.3}
    translator = adopt(override(BASE, wider), spec)
    assert translator.model == dataclasses.replace(BASE.model, network="encoder_decoder", dropout=0.3)
    assert translator.model.network == "encoder_decoder"
    before, _, _, _ = trained_parameters(translator, spec)
    for path, value in params.items():
        inner = path if path.startswith("embedding") else f"encoder/{path}"
        np.testing.assert_array_equal(before[inner], value, err_msg=path)


def trained_parameters(config, spec):
    module, on = build(config), mesh()
    optimizer = make_optimizer(config, parameter_shapes(module))
    state = init_state(module, optimizer, config, on, initial_params(config, on))
    return flatten_dict(jax.tree.map(np.asarray, state.params), sep="/"), None, None, state


def test_lora_without_a_map_to_train_is_refused():
    for changes, told in (
        ({"model.network": "lstm"}, "nothing to train"),
        ({"model.gated": False, "model.lora_targets": "query,gate"}, "no linear map gate.*it has query"),
        ({"model.attention": "latent"}, "no linear map value"),
    ):
        config = override(BASE, {"model.lora_rank": 2, **changes})
        with pytest.raises(ConfigError, match=told):
            make_optimizer(config, parameter_shapes(build(config)))


def test_weights_of_another_kind_of_network_and_another_tokenizer_are_refused(tmp_path):
    spec, _ = saved(tmp_path)
    with pytest.raises(ConfigError, match=r"kind encoder.*kind decoder"):
        adopt(override(BASE, {"model.network": "encoder"}), spec)
    with pytest.raises(ConfigError, match="comes with its tokenizer"):
        check(override(adopt(BASE, spec), {"tokenizer.source": "bpe"}))


def test_a_learned_position_table_keeps_its_length(tmp_path):
    spec, params = saved(tmp_path, override(BASE, {"model.position": "learned"}))
    config = adopt(override(BASE, {"data.length": 8}), spec)
    given = initial_params(config, mesh())
    np.testing.assert_array_equal(given["position/embedding"], params["position/embedding"])
