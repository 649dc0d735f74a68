"""Every setting from the command line."""

from __future__ import annotations

import json

import pytest
from absl import flags

from configs import flags as config_flags
from configs.convert import leaves, override, to_dict
from configs.presets import preset
from configs.schema import Config, ConfigError


@pytest.fixture
def resolve():
    """The config of a command line, through absl's flags, which are taken back afterwards."""
    before = set(flags.FLAGS)

    def parse(*arguments: str) -> Config:
        argv = ["program", *arguments]
        config_flags.define(argv)
        assert flags.FLAGS(argv) == ["program"], "something was not a flag"
        return config_flags.resolve()

    yield parse
    flags.FLAGS.unparse_flags()
    flags.FLAGS.remove_flag_values(set(flags.FLAGS) - before)


def test_without_flags_it_is_the_default_preset(resolve):
    assert resolve() == preset("quickstart")


def test_a_flag_overrides_the_preset_wherever_it_stands(resolve):
    config = resolve(
        "--model.width=64", "--config=smoke", "--train.seed", "3", "--model.attention_sinks", "--data.field=body"
    )
    changes = {"model.width": 64, "train.seed": 3, "model.attention_sinks": True, "data.field": "body"}
    assert config == override(preset("smoke"), changes)


@pytest.mark.parametrize(
    "arguments", [["--config", "smoke"], ["-config=smoke"], ["--config=quickstart", "--config=smoke"]]
)
def test_config_may_be_written_in_every_way_that_flags_may(resolve, arguments):
    assert resolve(*arguments) == preset("smoke")


def test_a_flag_can_say_no(resolve):
    assert resolve("--nodata.shuffle", "--model.tied_embeddings=false") == override(
        preset("quickstart"), {"data.shuffle": False, "model.tied_embeddings": False}
    )


def test_every_setting_is_a_flag_with_default_and_help(resolve):
    resolve("--config=smoke")
    for name, field, value in leaves(preset("smoke")):
        flag = flags.FLAGS[name]
        assert (flag.default, type(flag.default)) == (value, type(value))
        assert flag.help.startswith(field.metadata["help"])
        assert all(choice in flag.help for choice in field.metadata["choices"])


def test_config_can_be_that_of_a_run(resolve, tmp_path):
    saved = override(preset("smoke"), {"name": "mine", "optimizer.learning_rate": 0.5})
    (tmp_path / "config.json").write_text(config_flags.to_json(saved))
    assert resolve(f"--config={tmp_path}", "--train.steps=7") == override(saved, {"train.steps": 7})


def test_print_config_gives_what_config_reads(resolve, tmp_path):
    config = resolve("--config=smoke", "--print_config", "--train.sample_prompt=中 ")
    assert flags.FLAGS.print_config
    text = config_flags.to_json(config)
    assert json.loads(text) == to_dict(config)
    (tmp_path / "config.json").write_text(text, "utf-8")
    assert config_flags.load(str(tmp_path)) == config


@pytest.mark.parametrize("text", ["{", "[]", "3", "\udcff", '{"model": {"widht": 3}}', '{"model": {"width": "3"}}'])
def test_a_damaged_config_of_a_run_is_refused_and_named(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=r"config.json is not|widht.*model.width|model.width='3'"):
        config_flags.load(str(tmp_path))


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--model.widht=3", ["model.widht", "Did you mean", "model.width"]),
        ("--model.width=wide", ["--model.width=wide"]),
        ("--model.attention_sinks=maybe", ["model.attention_sinks", "maybe"]),
    ],
)
def test_a_flag_that_cannot_be_is_refused_with_the_nearest(resolve, argument, words):
    with pytest.raises(flags.Error) as error:
        resolve(argument)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("argument", ["--config=nowhere", "--model.norm=rsm", "--train.steps=0", "--model.num_heads=7"])
def test_a_value_that_cannot_be_is_refused(resolve, argument):
    with pytest.raises(ConfigError, match=argument):
        resolve(argument)
