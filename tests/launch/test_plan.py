"""Plans: names of topologies, programs compiled for TPUs that are not here, what is read from them."""

from __future__ import annotations

import os

import pytest

from configs.convert import check, override
from configs.presets import preset
from configs.schema import ConfigError
from launch.plans.bundles import Cycles, count
from launch.plans.topology import ENVIRONMENT, parse

pytest.importorskip("libtpu", reason="libtpu is not installed: uv sync --extra tpu")


@pytest.fixture(scope="module", autouse=True)
def _libtpu_beside_other_tests():
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    yield
    os.environ.clear()
    os.environ.update(before)


CYCLES = Cycles(step=100, block=1000, row=10)


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
    from launch.plans import kernels
    from launch.plans.planning import make_plan

    with pytest.MonkeyPatch.context() as patch:  # Compiling the kernels for their instructions takes long.
        patch.setattr(kernels, "cycles", lambda chip, blocks: dict.fromkeys(kernels.MATMULS, CYCLES))
        return make_plan(tiny(), parse("v5e:2x2"), tokens=1e9)


def test_a_training_step_is_planned_with_splash(plan):
    assert plan["fits"]
    memory = plan["memory"]
    assert 0 < memory["parameters"] < memory["optimizer"] < memory["peak"] < memory["limit"]
    assert memory["optimizer"] == pytest.approx(2 * memory["parameters"], rel=0.01)  # Adam's two moments.
    time = plan["time"]
    assert 0 < time["hidden"] < time["seconds"] < time["exposed"] * 1.0001
    # Three layers of two rows with four heads, of one pair of blocks: forward, again for remat, and two gradients.
    calls = 3 * 2 * 4
    assert time["kernel_flops"] == calls * 2 * (2 + 2 + 4 + 3) * 128 * 128 * 64
    assert time["kernels"] == pytest.approx(calls * 4 * (CYCLES.step + CYCLES.block + CYCLES.row) / 1.5e9)
    run = plan["run"]
    assert run["chip_hours"] == pytest.approx(4 * 24 * run["days"])
    assert run["tokens_per_second"] == pytest.approx(8 * 128 / time["seconds"])


def test_a_decode_step_is_planned_on_another_chip():
    from launch.plans.planning import make_plan

    plan = make_plan(tiny(mesh__tensor=2), parse("v5p:2x2x1"), step="decode")
    assert plan["mesh"] == {"fsdp": 2, "tensor": 2}
    assert plan["memory"]["optimizer"] == 0
    # Three layers of keys and values of 8 rows, 128 tokens, 2 heads of 64 numbers in two bytes, on 4 devices.
    assert plan["memory"]["cache"] == 3 * 2 * 8 * 128 * 2 * 64 * 2 // 4
    assert plan["time"]["seconds"] >= plan["time"]["null"] > 0


def test_bundles_of_a_kernel_are_counted_by_what_leaves_them_out():
    bundle = "  0x1   : > { %1 = vadd }"
    branch = "  0x2   : > { %2 = sbr.rel (%p1) target = $region9 }"
    text = [
        bundle,  # Before the loop.
        "  0x3 LB: > { %3 = sadd }", branch, bundle,
        branch, *[bundle] * 4, "  0x4 PF: > { %4 = sld }",  # The first pair of a row.
        branch, *["  0x5   : > { %5 = vmatmul }"] * 7, "  0x6 PF: > { %6 = sld }",  # A pair that is seen.
        branch, *[bundle] * 2, "  0x7 PF: > { %7 = sld }",  # The last pair of a row.
        "  0x8 PF: > { %8 = sld }", branch,
    ]  # fmt: skip
    # What a branch leaves out ends with the bundle that it leads to, which is counted with it.
    assert count("\n".join(text)) == Cycles(step=8, block=8, row=5 + 3)
    assert count(bundle) is None


@pytest.mark.slow
def test_splash_is_timed_by_the_instructions_that_libtpu_makes(tmp_path, monkeypatch):
    from launch.plans.bundles import Blocks, cycles

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    small, large = (cycles("v5e", Blocks(64, block, block, block)) for block in (128, 256))
    for name in ("fwd", "dkv", "dq"):
        # Four times the work; the matrix units' peak of 131,072 operations in a cycle is not exceeded by much.
        assert 2 < large[name].block / small[name].block < 6
    assert large["fwd"].block > 2 * 2 * 256 * 256 * 64 / 131_072 / 1.1
