"""Plans: names of topologies, programs compiled for TPUs that are not here, what is read from them."""

from __future__ import annotations

import os

import pytest

from configs.convert import check, override
from configs.presets import preset
from configs.schema import ConfigError
from launch.plans.topology import ENVIRONMENT, parse

pytest.importorskip("libtpu", reason="libtpu is not installed: uv sync --extra tpu")


@pytest.fixture(scope="module", autouse=True)
def _libtpu_beside_other_tests():
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    yield
    os.environ.clear()
    os.environ.update(before)


def tiny(**settings):
    """A network of a few thousand parameters that splash takes."""
    values = {
        "model.layers": "scan", "model.dtype": "bfloat16", "model.remat": "full", "model.head_width": 64,
        "model.num_layers": 3, "data.length": 128, "mesh.data": 1, "mesh.fsdp": -1,
    }  # fmt: skip
    return check(override(preset("smoke"), values | {name.replace("__", "."): x for name, x in settings.items()}))


@pytest.mark.parametrize(
    ("name", "shape", "chips", "devices"),
    [
        ("v5e:16x16", (16, 16), 256, 256),
        ("v5e-256", (16, 16), 256, 256),
        ("v5litepod-32", (4, 8), 32, 32),
        ("v6e-8", (2, 4), 8, 8),
        ("v5p-128", (4, 4, 4), 64, 64),  # Sold by TensorCores, two in a chip.
        ("v5p-1024", (8, 8, 8), 512, 512),
        ("v4-16", (2, 2, 2), 8, 8),
        ("v4:2x2x1", (2, 2, 1), 4, 4),
        ("tpu7x:2x2x1", (2, 2, 1), 4, 8),
        ("v5p:16x20x28", (16, 20, 28), 8960, 8960),
    ],
)
def test_topology_of_a_name(name, shape, chips, devices):
    topology = parse(name)
    assert (topology.shape, topology.chips, topology.devices) == (shape, chips, devices)
    assert parse(topology.name) == topology
    assert parse(name, 3).devices == 3 * devices


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v5e-12", r"--topology=v5e-12: .* nearest are v5e:2x4 \(v5e-8\) and v5e:4x4 \(v5e-16\)"),
        ("v5e:32x32", r"nearest is v5e:16x16 \(v5e-256\).* at most 256 chips; --slices=N"),
        ("v5p:4x4", r"nearest are v5p:2x2x4 \(v5p-32\) and v5p:2x4x4 \(v5p-64\)"),
        ("v5p-7", r"nearest is v5p:2x2x1 \(v5p-8\)"),
        ("v6e:2by2", "no such slice of v6e"),
        ("h100x8", "kinds of TPU are v4, v5e, v5p, v6e, tpu7x"),
        ("tpu7:2x2x1", "Did you mean tpu7x"),
    ],
)
def test_a_topology_that_there_is_not_names_the_nearest(name, says):
    with pytest.raises(ConfigError, match=says):
        parse(name)


@pytest.fixture(scope="module")
def plan():
    from launch.plans.planning import make_plan

    return make_plan(tiny(), parse("v5e:2x2"), tokens=1e9)


def test_a_training_step_is_planned_with_splash(plan):
    assert plan["fits"]
    memory = plan["memory"]
    assert 0 < memory["parameters"] < memory["optimizer"] < memory["peak"] < memory["limit"]
    assert memory["optimizer"] == pytest.approx(2 * memory["parameters"], rel=0.01)  # Adam's two moments.
    time = plan["time"]
    assert 0 < time["hidden"] < time["seconds"] < time["exposed"] * 1.0001
    assert time["kernel_flops"] > 0
    run = plan["run"]
    assert run["chip_hours"] == pytest.approx(4 * 24 * run["days"])
    assert run["tokens_per_second"] == pytest.approx(8 * 128 / time["seconds"])
