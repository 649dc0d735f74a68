"""Converting: run to Hugging Face folder and back bit for bit, GGUF file to run, and nothing left of what fails."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from absl import flags
from gguf_files import write_llama
from tiny import random_params, tiny

from configs import schema
from configs.convert import override
from configs.schema import ConfigError
from launch import convert
from model import build
from train.checkpoint import CheckpointError, Restored, find, restore_params
from train.data.sections import Corpus, Section
from train.data.tokenizer import make_tokenizer
from train.run import save_run

pytestmark = pytest.mark.end_to_end

TEXTS = ["def add(a, b):\n    return a + b\n", "Größe, naïve, 中文文本, 😀\n"] * 5


@pytest.fixture
def converted(monkeypatch):
    """Runs launch.convert in this process, given its flags."""
    monkeypatch.setenv("GLIBC_TUNABLES", "")  # Else it would start this process again.
    convert.define([])
    names = ("from", "to", "format")

    def run(**values: object) -> None:
        flags.FLAGS(["launch.convert", *(f"--{name.rstrip('_')}={value}" for name, value in values.items())])
        convert.run()

    yield run
    flags.FLAGS.unparse_flags()
    for name in names:
        delattr(flags.FLAGS, name)


@pytest.fixture
def run_dir(tmp_path):
    """A run folder with a small network of random weights and a BPE of 300 tokens."""
    sections = [Section(text, last=True) for text in TEXTS]
    tokenizer = make_tokenizer(schema.Tokenizer(vocab_size=300), Corpus(sections, sections, "", ""))
    config = override(tiny(), {"name": "mine", "tokenizer.source": "bpe", "tokenizer.vocab_size": tokenizer.size})
    save_run(tmp_path / "mine", Restored(config, random_params(build(config)), tokenizer, 0))
    return tmp_path / "mine"


def same(a, b) -> bool:
    return jax.tree.all(jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), a, b))


def test_a_run_that_goes_to_hugging_face_and_comes_back_is_the_same(run_dir, tmp_path, converted, capsys):
    converted(from_=run_dir, to=tmp_path / "theirs")
    described = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert described["model_type"] == "llama"
    converted(from_=tmp_path / "theirs", to=tmp_path / "back")
    ours, back = restore_params(run_dir), restore_params(tmp_path / "back")
    assert jax.tree.structure(back.params) == jax.tree.structure(ours.params)
    assert same(back.params, ours.params)
    # How it is computed is no part of a Hugging Face folder.
    back = dataclasses.replace(back, config=override(back.config, {"model.layers": ours.config.model.layers}))
    tokens = np.array([ours.tokenizer.prompt("def 中文 😀")], np.int32)
    logits = [np.asarray(build(it.config).apply({"params": it.params}, tokens)) for it in (ours, back)]
    np.testing.assert_array_equal(*logits)
    assert back.tokenizer.prompt("def 中文 😀") == tokens[0].tolist()
    assert (back.tokenizer.end_of_text, back.tokenizer.size) == (ours.tokenizer.end_of_text, ours.tokenizer.size)
    assert "launch.sample --checkpoint=" in capsys.readouterr().out


def test_a_gguf_file_becomes_a_run_that_programs_take(tmp_path, converted):
    written = write_llama(tmp_path / "model.gguf")
    converted(from_=f"gguf:{tmp_path / 'model.gguf'}", to=tmp_path / "runs" / "model")
    assert find(tmp_path / "runs" / "model") == (tmp_path / "runs" / "model", 0)
    restored = restore_params(tmp_path / "runs" / "model")
    direct = restore_params(f"gguf:{tmp_path / 'model.gguf'}")
    assert same(restored.params, direct.params)
    assert restored.config == direct.config
    assert restored.tokenizer.to_json() == direct.tokenizer.to_json()
    table = np.asarray(restored.params["embedding"]["embedding"])
    np.testing.assert_array_equal(table, written["model.embed_tokens.weight"])
    converted(from_=f"gguf:{tmp_path / 'model.gguf'}", to=tmp_path / "theirs", format="huggingface")
    assert same(restore_params(tmp_path / "theirs").params, restored.params)


def test_nothing_is_overwritten(run_dir, tmp_path, converted):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "work.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"--to=.*there exists already"):
        converted(from_=run_dir, to=tmp_path / "there")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["work.txt"]


@pytest.mark.parametrize("failure", [OSError("no room"), KeyboardInterrupt()])
def test_nothing_is_left_of_what_fails(run_dir, tmp_path, converted, monkeypatch, failure):
    from model import exchange

    def write(where, *_, **__):
        (where / "model.safetensors").write_bytes(b"half")
        raise failure

    monkeypatch.setattr(exchange, "write", write)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(type(failure)):
        converted(from_=run_dir, to=tmp_path / "theirs")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"to": "x"}, ConfigError, "--from is missing"),
        ({"from_": "smollm2"}, ConfigError, "--to is missing"),
        ({"from_": "{run}", "to": "{new}", "format": "run"}, ConfigError, "is a run already"),
        ({"from_": "{new}/nothing", "to": "{new}"}, CheckpointError, "There is no run folder .*A checkpoint is a run"),
        ({"from_": "gguf:{new}", "to": "{new}"}, CheckpointError, "gguf:.*There is no file"),
    ],
)
def test_what_cannot_be_converted_is_one_clear_error(run_dir, tmp_path, converted, values, error, message):
    places = {"run": run_dir, "new": tmp_path / "new"}
    with pytest.raises(error, match=message) as caught:
        converted(**{name: value.format(**places) for name, value in values.items()})
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_a_network_that_transformers_does_not_have_is_named(run_dir, tmp_path, converted):
    restored = restore_params(run_dir)
    config = override(restored.config, {"model.position": "alibi"})
    save_run(tmp_path / "odd", Restored(config, restored.params, restored.tokenizer, 0))
    with pytest.raises(CheckpointError, match="position"):
        converted(from_=tmp_path / "odd", to=tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()
