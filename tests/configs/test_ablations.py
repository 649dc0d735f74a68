"""What is varied: every named ablation can be run, and values are read as their settings' types."""

from __future__ import annotations

import pytest

from configs.ablations import ABLATIONS, Range, ablation, grid, label, searched, side_by_side, varied
from configs.check import check
from configs.convert import override
from configs.presets import preset
from configs.schema import ConfigError


@pytest.mark.parametrize("name", ABLATIONS)
def test_each_named_ablation_has_variants_that_can_be(name):
    variants = ablation(name)
    configs = [
        check(override(preset("smoke"), {"model.width": 64, "model.num_kv_heads": 0, **variant}))
        for variant in variants
    ]
    assert len({str(config) for config in configs}) == len(variants) > 1


def test_values_have_their_settings_types():
    assert varied("optimizer.learning_rate=1e-3,3") == [
        {"optimizer.learning_rate": 1e-3},
        {"optimizer.learning_rate": 3.0},
    ]
    assert varied("model.gated=true,False") == [{"model.gated": True}, {"model.gated": False}]
    assert varied("model.num_layers=2") == [{"model.num_layers": 2}]


def test_a_search_chooses_from_ranges_and_lists():
    assert searched("optimizer.learning_rate=1e-4..1:log") == Range("optimizer.learning_rate", 1e-4, 1.0, True)
    assert searched("model.num_layers=1..4") == Range("model.num_layers", 1, 4, False)
    assert searched("model.position=rope,none") == varied("model.position=rope,none")
    assert searched("data.source=text:../a,text:../b") == varied("data.source=text:../a,text:../b")


def test_axes_are_crossed_or_zipped():
    a, b = varied("model.num_layers=1,2"), varied("model.position=rope,none")
    crossed = grid(a, b)
    assert [label(variant) for variant in crossed] == [
        f"model.num_layers={layers} model.position={position}" for layers in (1, 2) for position in ("rope", "none")
    ]
    assert side_by_side(a, b) == [crossed[0], crossed[3]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: varied("model.posision=rope"), "Did you mean model.position"),
        (lambda: varied("model.num_layers=two"), "'two' is not int"),
        (lambda: varied("model.gated=maybe"), "'maybe' is not bool"),
        (lambda: varied("model.num_layers"), "--vary=model.num_layers"),
        (lambda: varied("model.num_layers=1..2"), "--search"),
        (lambda: searched("model.num_layers=2..1"), "to a larger one"),
        (lambda: searched("optimizer.learning_rate=0..1:log"), "above 0"),
        (lambda: searched("optimizer.learning_rate=1e-3..1:ratio"), "NUMBER..NUMBER:log"),
        (lambda: searched("optimizer.learning_rate=1e-3..much"), "'much' is not float"),
        (lambda: ablation("head"), "Did you mean heads"),
        (lambda: side_by_side(varied("model.num_layers=1,2"), varied("model.width=8")), "model.width has 1"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
