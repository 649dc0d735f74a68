"""Hugging Face folders: what is read lands where it belongs, what is written is read again, what is wrong is named."""

from __future__ import annotations

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from folders import LLAMA, llama_tensors, write_folder

from configs import schema
from configs.convert import override
from model import build, exchange
from model.exchange import config_json
from model.sharding import make_mesh, param_shardings


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "theirs", LLAMA, llama_tensors())


def flat(params):
    return {path: np.asarray(value) for path, value in flatten_dict(params, sep="/").items()}


def test_each_matrix_lands_in_our_layout(folder):
    theirs, params = llama_tensors(), flat(exchange.read(folder).params)
    for layer in range(2):
        at = f"model.layers.{layer}"
        query = theirs[f"{at}.self_attn.q_proj.weight"].T.reshape(12, 4, 6)
        np.testing.assert_array_equal(params["layers/attention/query/kernel"][layer], query)
        output = theirs[f"{at}.self_attn.o_proj.weight"].T.reshape(4, 6, 12)
        np.testing.assert_array_equal(params["layers/attention/output/kernel"][layer], output)
        down = theirs[f"{at}.mlp.down_proj.weight"].T
        np.testing.assert_array_equal(params["layers/feed_forward/down/kernel"][layer], down)
        norm = theirs[f"{at}.post_attention_layernorm.weight"]
        np.testing.assert_array_equal(params["layers/feed_forward_norm/scale"][layer], norm)
    np.testing.assert_array_equal(params["embedding/embedding"], theirs["model.embed_tokens.weight"])
    np.testing.assert_array_equal(params["output/kernel"], theirs["lm_head.weight"].T)
    assert sum(value.size for value in params.values()) == sum(value.size for value in theirs.values())


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read_exactly(tmp_path, dtype):
    tensors = {name: value.astype(dtype) for name, value in llama_tensors().items()}
    params = flat(exchange.read(write_folder(tmp_path / "half", LLAMA, tensors)).params)
    table = tensors["model.embed_tokens.weight"].astype(np.float32)
    np.testing.assert_array_equal(params["embedding/embedding"], table)


def test_parameters_can_be_kept_in_bfloat16(folder):
    imported = exchange.read(folder, param_dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(imported.params)} == {"bfloat16"}
    expected = llama_tensors()["lm_head.weight"].T.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(np.asarray(imported.params["output"]["kernel"]), expected)


def test_each_device_gets_its_share(folder):
    mesh = make_mesh(schema.Mesh(data=2, fsdp=2, tensor=2))
    whole, spread = exchange.read(folder), exchange.read(folder, mesh)
    shardings = flatten_dict(param_shardings(build(spread.config), mesh), sep="/")
    for path, value in flatten_dict(spread.params, sep="/").items():
        assert value.sharding == shardings[path]
        np.testing.assert_array_equal(np.asarray(value), flat(whole.params)[path])
    query = spread.params["layers"]["attention"]["query"]["kernel"]
    assert query.addressable_shards[0].data.shape == (2, 6, 2, 6)  # Half of the width, half of the heads.


def test_what_is_written_is_what_was_read(folder, tmp_path):
    imported = exchange.read(folder)
    kind = exchange.write(tmp_path / "ours", imported.config, imported.params, '{"a": 1}', start=3, ends=(7, 8))
    again = exchange.read(str(tmp_path / "ours"))
    assert kind == "llama"
    assert (again.tokenizer_json, again.ends) == ('{"a": 1}', (7, 8))
    assert override(again.config, {"name": imported.config.name}) == imported.config
    for path, value in flat(imported.params).items():
        np.testing.assert_array_equal(flat(again.params)[path], value)


def test_large_networks_are_written_as_several_files(folder, tmp_path):
    imported = exchange.read(folder)
    exchange.write(tmp_path / "ours", imported.config, imported.params, None, shard_bytes=4000)
    files = sorted(file.name for file in (tmp_path / "ours").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(llama_tensors())
    again = exchange.read(str(tmp_path / "ours"))
    for path, value in flat(imported.params).items():
        np.testing.assert_array_equal(flat(again.params)[path], value)


def broken(tmp_path, change):
    config, tensors = dict(LLAMA), llama_tensors()
    change(config, tensors)
    return write_folder(tmp_path / "broken", config, tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, t: t.pop("model.layers.1.mlp.up_proj.weight"), r"model\.layers\.1\.mlp\.up_proj\.weight is missing"),
        (lambda c, t: t.update({"model.layers.2.mlp.up_proj.weight": np.zeros((10, 12), np.float32)}),
         r"model\.layers\.2\.mlp\.up_proj\.weight is one too many"),
        (lambda c, t: t.update({"model.norm.weight": np.zeros(11, np.float32)}),
         r"model\.norm\.weight has the shape \(11,\); by the config.json it should be \(12,\)"),
        (lambda c, t: c.update(tie_word_embeddings=True), r"lm_head\.weight differs from model\.embed_tokens\.weight"),
        (lambda c, t: t.update({"model.norm.weight": np.zeros(12, np.int64)}), r"model\.norm\.weight .* stored as I64"),
        (lambda c, t: c.update(model_type="bert"), r"model_type='bert'.*Known are: gemma2, gemma3"),
        (lambda c, t: c.update(hidden_act="mish"), r"hidden_act='mish'"),
        (lambda c, t: c.update(rope_scaling={"type": "dynamic", "factor": 2.0}), r"RoPE scaling 'dynamic'"),
        (lambda c, t: c.update(partial_rotary_factor=0.5), r"partial_rotary_factor=0\.5"),
        (lambda c, t: c.update(attention_bias=True), r"attention_bias=True and mlp_bias=False"),
        (lambda c, t: c.update(quantization_config={"bits": 4}), r"quantization_config"),
        (lambda c, t: c.pop("hidden_size"), r"no field 'hidden_size'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, change, message):
    with pytest.raises(exchange.ExchangeError, match=message):
        exchange.read(broken(tmp_path, change))


def test_a_copy_of_a_tied_tensor_and_known_buffers_are_no_error(tmp_path):
    def change(config, tensors):
        config["tie_word_embeddings"] = True
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(3, np.float32)

    imported = exchange.read(broken(tmp_path, change))
    assert imported.config.model.tied_embeddings
    assert "output" not in imported.params


def test_a_file_that_is_cut_off_is_named(folder, tmp_path):
    file = tmp_path / "theirs" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(exchange.ExchangeError, match=r"model\.safetensors is cut off"):
        exchange.read(folder)


def test_a_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(exchange.ExchangeError, match=r"it has no config\.json"):
        exchange.read_config(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(exchange.ExchangeError, match=r"no \*\.safetensors file.*save_pretrained"):
        exchange.read_config(str(tmp_path))


@pytest.mark.parametrize(
    ("setting", "value", "named"),
    [("position", "alibi", "position"), ("attention_sinks", True, "attention_sinks"), ("norm", "layer", "norm"),
     ("norm_position", "post", "norm_position"), ("rope_scaling", "ntk", "rope_scaling"),
     ("attention", "latent", "attention"), ("logit_scale", 0.5, "logit_scale"), ("final_norm", "off", "final_norm")],
)  # fmt: skip
def test_a_network_that_no_family_has_is_refused_by_its_setting(folder, tmp_path, setting, value, named):
    imported = exchange.read(folder)
    config = override(imported.config, {f"model.{setting}": value})
    with pytest.raises(exchange.ExchangeError, match=rf"No kind of network .*\b{named}=.* where this one has"):
        exchange.write(tmp_path / "ours", config, imported.params, None)
    with pytest.raises(exchange.ExchangeError, match=rf"nearest is llama, .*\b{named}="):
        exchange.write(tmp_path / "ours", config, imported.params, None, "llama")


def test_a_family_is_found_by_what_the_network_computes(folder, tmp_path):
    imported = exchange.read(folder)
    for settings, kind in (
        ({}, "llama"),
        ({"window": 5}, "mistral"),
        ({"window": 5, "window_pattern": "LG", "qkv_biases": True}, "qwen2"),
        ({"qk_norm": "head"}, "qwen3"),
        ({"rope_fraction": 2 / 3}, "phi3"),
    ):
        config = override(imported.config, {f"model.{name}": value for name, value in settings.items()})
        assert config_json.to_fields(config)[0].model_type == kind


def test_the_hub_without_a_network_says_what_to_do(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(exchange.ExchangeError, match=r"hf:nobody/nothing .*(path of a folder|huggingface_hub)"):
        exchange.read_config("hf:nobody/nothing")
