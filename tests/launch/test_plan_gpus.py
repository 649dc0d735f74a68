"""Plans for GPUs: names, communication in a program and its bounds, a step compiled for GPUs that are not here."""

from __future__ import annotations

import importlib.util
import os

import pytest

from configs.check import check
from configs.convert import override
from configs.presets import preset
from configs.schema import ConfigError
from launch.plans.gpus import ENVIRONMENT, GPUS, devices_of_hosts
from launch.plans.topology import parse


@pytest.mark.parametrize(
    ("name", "hosts", "each", "written"),
    [("h100:8", 1, 8, "h100:8"), ("H200:4x8", 4, 8, "h200:4x8"), ("h100:1x2", 1, 2, "h100:2")],
)
def test_gpus_of_a_name(name, hosts, each, written):
    topology = parse(name)
    assert (topology.hosts, topology.each, topology.devices) == (hosts, each, hosts * each)
    assert topology.name == written
    assert parse(written) == topology


@pytest.mark.parametrize(
    ("name", "slices", "says"),
    [
        ("h100:16", 1, r"--topology=h100:16: .* at most 8, as h100:8, and several hosts as h100:4x8"),
        ("h100-8", 1, "--topology=h100-8: write the GPUs of a host"),
        ("h200:0x8", 1, "--topology=h200:0x8"),
        ("h200:2x2x8", 1, "--topology=h200:2x2x8"),
        ("h200:8", 4, "--slices=4: .* --topology=h200:4x8"),
        ("h300:8", 1, "of GPU h100, h200. Did you mean h"),
    ],
)
def test_gpus_that_there_are_not(name, slices, says):
    with pytest.raises(ConfigError, match=says):
        parse(name, slices)


def test_what_xla_takes_of_the_memory_is_the_limit(monkeypatch):
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    assert GPUS["h100"].hbm == pytest.approx(0.75 * 79.1 * 2**30, rel=1e-3)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    assert GPUS["h100"].hbm == pytest.approx(0.9 * 79.1 * 2**30, rel=1e-3)


def test_without_the_plugin_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--topology=h100:8: .* `uv sync --extra gpu`"):
        devices_of_hosts(parse("h100:8"))


PROGRAM = """HloModule m, is_scheduled=true, num_partitions=16

%body (p: (s32[], bf16[64])) -> (s32[], bf16[64]) {
  %p = (s32[], bf16[64]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = bf16[64]{0} get-tuple-element(%p), index=1
  %begin = (bf16[64]{0}, bf16[1024]{0}) all-gather-start(%x), replica_groups=[1,16]<=[16], dimensions={0}
  %end = bf16[1024]{0} all-gather-done(%begin)
  %scatter = ((bf16[1024]{0}), bf16[64]{0}) reduce-scatter-start(%end), replica_groups=[1,16]<=[16], dimensions={0}
  %scattered = bf16[64]{0} reduce-scatter-done(%scatter)
  ROOT %out = (s32[], bf16[64]{0}) tuple(%i, %scattered)
}

ENTRY %main (a: bf16[64]) -> bf16[64] {
  %a = bf16[64]{0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], bf16[64]{0}) tuple(%zero, %a)
  %w = (s32[], bf16[64]{0}) while(%start), body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %y = bf16[64]{0} get-tuple-element(%w), index=1
  %reduced = bf16[64]{0} all-reduce(%y), replica_groups={{0,1},{2,3}}, to_apply=%add
  %near = bf16[64]{0} collective-permute(%reduced), source_target_pairs={{0,1},{1,0}}
  %far = bf16[64]{0} collective-permute(%near), source_target_pairs={{0,1},{7,8}}
  ROOT %swapped = bf16[64]{0} all-to-all(%far), replica_groups={{0,8}}
}
"""


def test_communication_takes_at_least_what_its_bytes_take_on_the_links():
    from launch.plans.hlo import read
    from launch.plans.roofline import exchanges, roofline

    hosts, nvlink, network = parse("h100:2x8"), 450e9, 50e9
    found = exchanges(read(PROGRAM), hosts)
    assert [(one.kind, one.count, one.bytes) for one in found] == [
        ("all-gather", 3, 2048), ("reduce-scatter", 3, 2048), ("all-reduce", 1, 128),
        ("collective-permute", 1, 128), ("collective-permute", 1, 128), ("all-to-all", 1, 128),
    ]  # fmt: skip
    # Half of what is gathered comes from the other host, over eight ports; 15 of 16 parts come over NVLink.
    gather = max(2048 / 2 / (8 * network), 2048 * 15 / 16 / nvlink)
    seconds = [gather, gather, 128 / 2 / nvlink, 128 / nvlink, 128 / network, 128 / 2 / network]
    assert [one.seconds for one in found] == pytest.approx(seconds)
    # Among pairs of GPUs of different hosts, all that is gathered from the other comes over one port.
    (gathered, *_) = exchanges(read(PROGRAM.replace("[1,16]<=[16]", "[8,2]<=[2,8]T(1,0)")), hosts)
    assert gathered.seconds == pytest.approx(2048 / 2 / network)
    bound = roofline(hosts, flops=16 * 989.4e12 * 0.5, kept=0.1, sent=2.0)
    assert (bound["seconds"], bound["compute"], bound["mfu"]) == pytest.approx((2.0, 0.5, 0.25))


@pytest.mark.parametrize(
    ("groups", "first"),
    [
        ("mesh['a'=2,'b'=4] {'b'}", (0, 1, 2, 3)),
        ("mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", (0, 1, 2, 3)),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", (0, 4)),
        ("mesh['a'=2,'b'=2], device_ids=(3,1,2,0) {'b'}", (3, 1)),
        ("[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("{{0,3},{1,2}}", (0, 3)),
    ],
)
def test_groups_are_read_as_they_are_written(groups, first):
    from launch.plans.collectives import first_group
    from launch.plans.hlo import read

    text = PROGRAM.replace("{{0,1},{2,3}}", groups)
    program = read(text)
    assert first_group(program.computations["main"].instructions["reduced"], 16) == first


@pytest.fixture
def plugin():
    pytest.importorskip("jax_cuda12_plugin", reason="JAX's plugin for CUDA is not installed: uv sync --extra gpu")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, os.environ.get(name, value))
        for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
            patch.delenv(name, raising=False)
        yield


def tiny(**settings):
    values = {"model.layers": "scan", "model.dtype": "bfloat16", "model.remat": "full", "model.num_layers": 3,
              "model.kernel": "dense", "mesh.data": 2, "mesh.fsdp": -1}  # fmt: skip
    return check(override(preset("smoke"), values | {name.replace("__", "."): x for name, x in settings.items()}))


def test_a_training_step_is_compiled_for_gpus(plugin):
    from launch.plans.planning import make_plan
    from launch.plans.report import as_text

    plan = make_plan(tiny(), parse("h100:2x4"), tokens=1e9)
    assert plan["fits"]
    assert plan["mesh"] == {"data": 2, "fsdp": 4}
    memory = plan["memory"]
    assert memory["peak"] > memory["parameters"] + memory["optimizer"] + memory["temporary"] > memory["temporary"] > 0
    assert memory["optimizer"] == pytest.approx(2 * memory["parameters"], rel=0.01)  # Adam's two moments.
    # Parameters are gathered in two bytes, forward and backward, and their gradients summed over the hosts, each GPU
    # with its like.
    rows = {(row["kind"], row["axes"]): row["bytes"] for row in plan["collectives"]}
    assert rows["all-gather", "fsdp"] == pytest.approx(2 * 2 * memory["parameters"], rel=0.3)
    assert memory["parameters"] / 2 <= rows["all-reduce", "data"] < 1.5 * memory["parameters"]
    assert plan["time"]["seconds"] == max(plan["time"][part] for part in ("compute", "memory", "communication"))
    text = as_text(plan)
    assert "time per step: at least" in text
    assert "tokens take at least" in text


def test_on_a_gpu_what_does_not_fit_compiles_but_is_found_out(plugin):
    from launch.plans.planning import make_plan
    from launch.plans.report import as_text

    config = tiny(train__batch_size=2**19, model__remat="none")
    plan = make_plan(config, parse("h100:8"))
    assert not plan["fits"]
    assert plan["memory"]["peak"] > plan["memory"]["limit"]
    assert "DOES NOT FIT" in as_text(plan)


def test_a_decode_step_is_compiled_for_gpus(plugin):
    from launch.plans.planning import make_plan

    plan = make_plan(tiny(), parse("h200:8"), step="decode")
    memory = plan["memory"]
    assert memory["optimizer"] == 0
    assert plan["time"]["memory"] == pytest.approx((memory["parameters"] + memory["cache"]) / 4.8e12)
