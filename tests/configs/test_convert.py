"""Configs to dictionaries and back, and what is refused with which words."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import versions
from configs.check import check
from configs.convert import differences, from_dict, leaves, override, to_dict
from configs.derived import feed_forward_width, head_width, layer_windows, max_length, num_kv_heads
from configs.presets import PRESETS
from configs.schema import Config, ConfigError

NAMES = [name for name, _, _ in leaves(Config())]


def changed(**settings) -> Config:
    """The default config with settings `section__name`."""
    return override(Config(), {name.replace("__", "."): value for name, value in settings.items()})


def any_value(default):
    """Values of the type of a setting."""
    kinds = {
        bool: st.booleans(),
        int: st.integers(-(2**70), 2**70),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: st.text(),
    }
    return kinds[type(default)]


@given(st.fixed_dictionaries({}, optional={name: any_value(value) for name, _, value in leaves(Config())}))
def test_a_config_survives_json_exactly(values):
    config = override(Config(), values)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert {name: value for name, _, value in leaves(config) if name in values} == values


def test_leaves_are_all_settings_once():
    assert len(set(NAMES)) == len(NAMES)
    plain = to_dict(Config())
    assert plain.pop("version") == versions.CURRENT
    assert len(NAMES) == sum(len(value) if isinstance(value, dict) else 1 for value in plain.values())


def test_absent_settings_keep_their_defaults():
    assert from_dict({}) == Config()
    assert from_dict({"model": {"width": 64}}) == changed(model__width=64)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model": {"widht": 1}}, ["no setting model.widht", "model.width"]),
        ({"modle": {"width": 1}}, ["no setting modle"]),
        ({"model": 3}, ["no setting model"]),
        ({"naem": "x"}, ["no setting naem", "name"]),
        ({"zzz": 1}, ["no setting zzz", "model.width", "train.steps"]),  # Nothing is near: all are listed.
        ({"model": {"width": "64"}}, ["--model.width='64'", "int"]),
        ({"model": {"width": 64.0}}, ["--model.width=64.0", "int"]),
        ({"model": {"width": True}}, ["--model.width=True", "int"]),
        ({"model": {"gated": 1}}, ["--model.gated=1", "bool"]),
        ({"model": {"dropout": True}}, ["--model.dropout=True", "float"]),
        ({"model": {"norm": None}}, ["--model.norm=None", "str"]),
    ],
)
def test_a_wrong_name_or_type_is_refused_with_what_would_be_right(values, words):
    with pytest.raises(ConfigError) as error:
        from_dict(values)
    assert all(word in str(error.value) for word in words), error.value


def test_a_whole_number_is_a_float():
    assert type(changed(model__dropout=0).model.dropout) is float


def test_an_override_leaves_everything_else_as_it_is():
    config = override(override(Config(), {"model.width": 64, "train.seed": 1, "name": "x"}), {"model.num_layers": 1})
    assert (config.model.width, config.model.num_layers, config.train.seed, config.name) == (64, 1, 1, "x")


def test_differences_name_setting_and_both_values():
    ours, theirs = changed(model__width=128, name="ours"), changed(train__seed=3)
    assert differences(ours, theirs) == [
        "name: 'ours' here, 'quickstart' there",
        "model.width: 128 here, 256 there",
        "train.seed: 0 here, 3 there",
    ]
    assert differences(ours, ours) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model__num_heads": 7}, ["--model.width=256", "--model.num_heads=7", "--model.head_width"]),
        ({"model__attention": "delta", "model__network": "encoder"}, ["--model.attention=delta", "network=encoder"]),
        ({"model__attention": "linear", "model__window": 4}, ["--model.window=4", "--model.attention=linear"]),
        ({"model__rope_fraction": 1.5}, ["--model.rope_fraction=1.5", "at most 1"]),
        ({"model__num_experts": 2, "model__experts_per_token": 3}, ["experts_per_token=3", "num_experts=2"]),
        ({"model__lora_targets": "qeury"}, ["--model.lora_targets=qeury", "query"]),
        ({"model__network": "lstm", "model__dropout": 1.0}, ["--model.dropout=1.0"]),
        ({"model__network": "lstm_encoder_decoder", "model__width": 5}, ["--model.width=5", "half"]),
        ({"model__network": "encoder_decoder"}, ["--model.network=encoder_decoder", "--data.languages"]),
        ({"data__languages": "en-de"}, ["--data.languages='en-de'", "--model.network=decoder"]),
        ({"tokenizer__source": "checkpoint"}, ["--tokenizer.source=checkpoint", "--init_from"]),
        ({"model__lora_rank": 2, "optimizer__name": "schedule_free"}, ["--model.lora_rank=2", "schedule_free"]),
        ({"model__num_kv_heads": 3}, ["--model.num_heads=8", "--model.num_kv_heads=3"]),
        ({"model__num_kv_heads": 16}, ["--model.num_heads=8", "--model.num_kv_heads=16"]),
        ({"model__head_width": 7}, ["7", "--model.position=rope", "--model.head_width"]),
        ({"model__window_pattern": "LX"}, ["--model.window_pattern='LX'", "L and G"]),
        ({"model__window_pattern": ""}, ["--model.window_pattern=''"]),
        ({"model__kernel": "fused", "model__attention_sinks": True}, ["--model.kernel=fused", "attention_sinks"]),
        ({"model__kernel": "fused", "model__attention_softcap": 1.0}, ["--model.kernel=fused", "attention_softcap"]),
        ({"model__dropout": 1.0}, ["--model.dropout=1.0", "below 1"]),
        ({"train__microbatches": 3}, ["--train.batch_size=16", "--train.microbatches=3"]),
        ({"data__held_out": 1.0}, ["--data.held_out=1.0", "below 1"]),
        (
            {"model__position": "learned", "model__max_length": 100},
            ["--model.max_length=100", "--data.length=256"],
        ),
        ({"optimizer__beta1": 1.5}, ["--optimizer.beta1=1.5", "below 1"]),
        ({"optimizer__beta2": 1.0}, ["--optimizer.beta2=1.0", "below 1"]),
        ({"optimizer__beta2": 0.999, "optimizer__state_dtype": "bfloat16"}, ["beta2=0.999", "bfloat16", "0.996"]),
        ({"optimizer__ema_decay": 1.0}, ["--optimizer.ema_decay=1.0", "below 1"]),
        ({"optimizer__name": "schedule_free", "optimizer__beta1": 0.0}, ["--optimizer.beta1=0", "0.9"]),
        ({"optimizer__name": "schedule_free", "optimizer__ema_decay": 0.9}, ["--optimizer.ema_decay=0.9", "twice"]),
        ({"optimizer__decay_fraction": 1.5}, ["--optimizer.decay_fraction=1.5", "at most 1"]),
        ({"train__label_smoothing": 1.0}, ["--train.label_smoothing=1.0", "below 1"]),
        ({"model__matmul": "int8", "model__num_experts": 4}, ["--model.matmul=int8", "num_experts=4", "default"]),
        ({"model__matmul": "fp8", "model__network": "lstm"}, ["--model.matmul=fp8", "--model.network=lstm"]),
        ({"model__remat": "minmal"}, ["--model.remat=minmal", "offload", "query", "Did you mean minimal?"]),
        ({"model__remat": "query,full"}, ["--model.remat=query,full", "'full'"]),
        ({"model__position": "rop"}, ["--model.position=rop", "sinusoidal", "Did you mean rope?"]),
    ],
)
def test_settings_that_cannot_be_are_refused_with_flag_value_and_way_out(settings, words):
    check(Config())
    with pytest.raises(ConfigError) as error:
        check(changed(**settings))
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("name", NAMES)
def test_every_bound_and_every_choice_is_checked(name):
    field, value = next((field, value) for leaf, field, value in leaves(Config()) if leaf == name)
    assert field.metadata["help"].endswith(".")
    wrong = []
    if field.metadata["choices"]:
        assert value in field.metadata["choices"]
        wrong.append("nonsense")
    elif type(value) in (int, float) and name != "train.seed":
        assert field.metadata["at_least"] is not None, "what is the least that it can be?"
        wrong.append(type(value)(field.metadata["at_least"] - 1))
    if type(value) is float:
        wrong += [math.nan, math.inf]
    for bad in wrong:
        with pytest.raises(ConfigError) as error:
            check(override(Config(), {name: bad}))
        assert f"--{name}={bad}" in str(error.value)


def test_derived_sizes():
    config = changed(model__width=96, model__num_heads=8)
    assert (head_width(config), num_kv_heads(config), feed_forward_width(config)) == (12, 2, 256)
    assert num_kv_heads(changed(model__attention="mha")) == 8
    assert num_kv_heads(changed(model__attention="mqa")) == 1
    assert num_kv_heads(changed(model__num_heads=2)) == 1
    assert num_kv_heads(changed(model__num_heads=9)) == 1  # 2, a quarter, does not divide 9.
    assert num_kv_heads(changed(model__num_heads=12)) == 3
    assert head_width(changed(model__head_width=5)) == 5
    assert feed_forward_width(changed(model__gated=False)) == 4 * 256
    assert feed_forward_width(changed(model__feed_forward_width=7)) == 7
    # Gated, three matrices of 8/3 D hold what two of 4 D hold, up to the rounding to a multiple of 8.
    assert 0 <= 3 * feed_forward_width(changed(model__width=100)) - 2 * 400 <= 3 * 8
    assert max_length(changed()) == 256
    assert max_length(changed(model__max_length=9)) == 9


def test_the_window_pattern_repeats_over_the_layers():
    windows = {"model__num_layers": 5, "model__window": 4}
    assert layer_windows(changed(**windows, model__window_pattern="LLG"), 5) == [4, 4, 0, 4, 4]
    assert layer_windows(changed(**windows), 5) == [4] * 5
    assert layer_windows(changed(), 2) == [0, 0]


def test_configs_are_values():
    assert hash(Config()) == hash(from_dict(to_dict(Config())))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().model.width = 1  # type: ignore[misc]
    assert all(preset() == preset() for preset in PRESETS.values())


def test_a_config_of_an_older_version_is_read_with_the_names_of_today():
    changes = {
        2: versions.renamed({"model.size": "model.breadth"}),
        3: versions.renamed({"model.breadth": "model.width", "train.saves": "train.keep"}),
    }
    old = {"model.size": 32, "train.saves": 1, "train.seed": 7}
    assert versions.migrated(old, 1, changes) == {"model.width": 32, "train.keep": 1, "train.seed": 7}
    assert versions.migrated({"model.breadth": 32}, 2, changes) == {"model.width": 32}
    assert versions.migrated({"model.width": 32}, 3, changes) == {"model.width": 32}


@pytest.mark.parametrize("version", [versions.CURRENT + 1, 0, "1", None])
def test_a_config_of_a_newer_version_is_refused(version):
    with pytest.raises(ConfigError, match="a newer seq2see wrote it"):
        from_dict({**to_dict(Config()), "version": version})
