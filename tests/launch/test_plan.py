"""Plans: names of topologies, programs compiled for TPUs that are not here, what is read from them."""

from __future__ import annotations

import os

import jax
import pytest

from configs import schema
from configs.check import check
from configs.convert import override
from configs.presets import preset
from configs.schema import ConfigError
from launch.plans.bundles import Cycles, count
from launch.plans.topology import ENVIRONMENT, devices_of, parse
from model.sharding import make_mesh

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


def test_whole_slices_are_closed_to_rings_so_that_what_is_gathered_is_not_reduced():
    assert parse("v5p:8x8x8").rings == (True, True, True)
    assert parse("v5p:2x4x4").rings == (False, False, False)
    assert parse("v5e:8x16").rings == (False, True, False)
    mesh = make_mesh(schema.Mesh(data=1, fsdp=-1), devices_of(parse("v5p:8x8x8")))
    lies, whole = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (("fsdp",), ()))
    x = jax.ShapeDtypeStruct((512 * 16, 8192), "bfloat16", sharding=lies)
    hlo = jax.jit(lambda x: x * 2, out_shardings=whole).lower(x).compile().as_text()
    assert " all-gather(" in hlo
    assert " all-reduce(" not in hlo


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


def test_experts_are_planned_as_the_chip_computes_them():
    from model.experts import block_size

    with jax.set_mesh(make_mesh(schema.Mesh(), devices_of(parse("v5e:2x2")))):
        assert block_size(4096, 8) == 1  # Blocks of one expert each are for CPUs, such as the one that plans.
    assert block_size(4096, 8) == 256


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


def test_a_program_that_does_not_fit_is_an_answer_with_its_largest_arrays():
    from launch.plans.planning import make_plan
    from launch.plans.report import as_text

    plan = make_plan(tiny(train__batch_size=2**16, model__remat="none"), parse("v5e:2x2"))
    assert not plan["fits"]
    assert plan["memory"]["peak"] > plan["memory"]["limit"] == pytest.approx(15.75 * 2**30)
    # Of each of three layers, queries of 16,384 rows of 128 tokens, four heads of 64 numbers in two bytes.
    assert plan["largest"][0]["bytes"] >= 3 * 2**14 * 128 * 4 * 64 * 2
    assert plan["largest"][0]["what"].startswith("bf16[3,16384,4,128,64] jit(train_step)/")
    assert "DOES NOT FIT" in as_text(plan)
    assert "--model.remat=full" in as_text(plan)


LOOP = """HloModule m, is_scheduled=true, num_partitions=4

%body (p: (s32[], bf16[256,512])) -> (s32[], bf16[256,512]) {
  %p = (s32[]{:T(128)}, bf16[256,512]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = bf16[256,512]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %w = bf16[128,512]{1,0} constant({...})
  %all-gather.1 = bf16[512,512]{1,0:T(8,128)} all-gather(%w), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}
  %y = bf16[256,512]{1,0} convolution(%x, %all-gather.1), dim_labels=bf_io->bf, metadata={op_name="jit(f)/y
}}"}, backend_config={"estimated_cycles":"3000"}
  %all-reduce.2 = bf16[256,512]{1,0} all-reduce(%y), channel_id=2, replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %out = (s32[], bf16[256,512]{1,0}) tuple(%next, %all-reduce.2)
}

%condition (q: (s32[], bf16[256,512])) -> pred[] {
  %q = (s32[], bf16[256,512]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %limit = s32[] constant(8)
  ROOT %less = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (a: bf16[256,512]) -> bf16[256,512] {
  %a = bf16[256,512]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], bf16[256,512]{1,0}) tuple(%zero, %a)
  %while.1 = (s32[], bf16[256,512]{1,0}) while(%start), condition=%condition, body=%body
  ROOT %r = bf16[256,512]{1,0} get-tuple-element(%while.1), index=1
}
"""


def test_a_program_is_priced_by_its_loops_multiplications_and_communication(tmp_path):
    from launch.plans.collectives import LATENCY
    from launch.plans.planning import price_file
    from launch.plans.pricing import REACHED

    path = tmp_path / "program.txt"
    path.write_text(LOOP)
    plan = price_file(path, parse("v5e:2x2"))
    time, rounds = plan["time"], 4  # The counter goes from 0 to 8 in steps of two.
    flops = 2 * 256 * 512 * 512
    assert time["matmul_flops"] == rounds * flops
    assert time["null"] == pytest.approx(rounds * flops / (0.72 * 197e12))
    # 3,000 cycles at 1.5 GHz would be a third of the peak: not multiplications, then, decide how long it takes.
    assert time["hidden"] == pytest.approx(rounds * 3000 / 1.5e9)
    (gather,), (reduce,) = (
        [row for row in plan["collectives"] if row["kind"] == kind] for kind in ("all-gather", "all-reduce")
    )
    assert (gather["axes"], gather["count"], gather["bytes"]) == ("4 devices", rounds, rounds * 512 * 512 * 2)
    # Three quarters come over two links; half of the sum goes out, and half comes back, over one.
    assert gather["seconds"] == pytest.approx(rounds * (512 * 512 * 2 * 3 / 4 / 90e9 + 2 * LATENCY))
    assert (reduce["axes"], reduce["count"]) == ("2 devices", rounds)
    assert reduce["seconds"] == pytest.approx(rounds * (256 * 512 * 2 / 45e9 + LATENCY))
    assert time["scheduled"] == time["exposed"] == pytest.approx(time["hidden"] + gather["seconds"] + reduce["seconds"])
    # The gather may hide behind the multiplication, the sum of its results may not.
    exposed = max(reduce["seconds"] + time["hidden"], gather["seconds"])
    assert time["seconds"] == pytest.approx(exposed)
    path.write_text(LOOP.replace('"3000"', '"1100"'))
    assert price_file(path, parse("v5e:2x2"))["time"]["hidden"] == pytest.approx(rounds * flops / (REACHED * 197e12))


def test_what_is_no_program_is_refused(tmp_path):
    from launch.plans.planning import price_file

    (tmp_path / "text").write_text("nothing\nof the kind\n")
    for name in ("text", "missing"):
        with pytest.raises(ConfigError, match=f"--hlo=.*{name}"):
            price_file(tmp_path / name, parse("v5e:2x2"))


def test_slices_exchange_gradients_over_the_network_between_them():
    from launch.plans import kernels
    from launch.plans.planning import make_plan

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "cycles", lambda chip, blocks: {})
        plan = make_plan(tiny(mesh__data=-1, mesh__fsdp=4), parse("v5e:2x2", 2))
    assert plan["mesh"] == {"data": 2, "fsdp": 4}
    between = [row for row in plan["collectives"] if row["axes"] == "data"]
    assert {row["kind"] for row in between} == {"all-reduce"}
    # Each device adds up its quarter of all gradients, in two bytes or four, with its like in the other slice.
    quarter = plan["memory"]["parameters"]
    assert quarter / 2 <= sum(row["bytes"] for row in between) < 1.5 * quarter


def test_slices_that_are_stages_send_parts_over_the_network_between_them():
    from launch.plans import kernels
    from launch.plans.collectives import DCN_LATENCY
    from launch.plans.planning import make_plan

    stages = tiny(mesh__stage=2, mesh__fsdp=4, model__num_layers=4, train__batch_size=16, train__microbatches=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "cycles", lambda chip, blocks: {})
        plan = make_plan(stages, parse("v5e:2x2", 2))
    assert plan["mesh"] == {"stage": 2, "fsdp": 4}
    sent = [row for row in plan["collectives"] if (row["kind"], row["axes"]) == ("collective-permute", "stage")]
    count, number = (sum(row[name] for row in sent) for name in ("count", "bytes"))
    assert count >= 2 * (4 + 1)  # After each visit, forward and backward.
    assert number >= 2 * (4 + 1) * 128 * stages.model.width * 2  # A row on each device, in two bytes.
    assert sum(row["seconds"] for row in sent) == pytest.approx(number / 3.125e9 + count * DCN_LATENCY)
