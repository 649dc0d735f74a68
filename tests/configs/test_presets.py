"""Presets: they can be built, and a change of what they are shows in review."""

from __future__ import annotations

import pathlib

import jax
import pytest

from configs.check import check
from configs.derived import source_length, translates
from configs.flags import to_json
from configs.presets import PRESETS, preset
from configs.schema import ConfigError
from model import Source, build
from model.sharding import parameter_shapes
from train.optimizer import make_optimizer

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_what_its_golden_dump_says(name):
    golden = GOLDEN / f"{name}.json"
    before = golden.read_text("utf-8") if golden.exists() else ""
    assert to_json(preset(name)) + "\n" == before, (
        f"The preset {name} has changed. If that is meant, look at the difference after:\n"
        f"  uv run -m launch.train --config={name} --print_config > tests/configs/golden/{name}.json"
    )


def test_every_golden_dump_is_of_a_preset():
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_can_be_run(name):
    config = check(preset(name))
    assert config.name == name
    module = build(config)
    shapes = parameter_shapes(module)
    rows = config.train.batch_size // config.train.microbatches
    tokens_BT = jax.ShapeDtypeStruct((rows, config.data.length), "int32")
    source = None
    if translates(config):
        sources_BS = jax.ShapeDtypeStruct((rows, source_length(config.data)), "int32")
        source = Source(sources_BS, sources_BS, sources_BS)
    inputs = (tokens_BT, tokens_BT, tokens_BT, None, source)
    logits_BTV = jax.eval_shape(module.apply, {"params": shapes}, *inputs)
    assert logits_BTV.shape == (rows, config.data.length, config.tokenizer.vocab_size)
    jax.eval_shape(make_optimizer(config, shapes).init, shapes)


@pytest.mark.parametrize(("one", "other"), [("quickstart", "lstm"), ("translate", "translate_lstm")])
def test_recurrent_presets_have_as_many_parameters_as_what_they_are_compared_with(one, other):
    counts = [
        sum(leaf.size for leaf in jax.tree.leaves(parameter_shapes(build(preset(name))))) for name in (one, other)
    ]
    assert counts[1] == pytest.approx(counts[0], rel=0.01)
    for name in ("data", "optimizer", "train", "tokenizer"):
        assert getattr(preset(one), name) == getattr(preset(other), name)


def test_preset_says_what_it_is():
    for make in PRESETS.values():
        assert make.__doc__


def test_unknown_preset_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"--config=quikstart .*smoke.* Did you mean quickstart\?"):
        preset("quikstart")
