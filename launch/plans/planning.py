"""The plan of a run as plain data: what is printed as a table or as JSON."""

from __future__ import annotations

import importlib.metadata
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.schema import Config, ConfigError
from launch.plans.buffers import Buffer
from launch.plans.collectives import Collective
from launch.plans.compiling import Memory, OutOfMemory, compile_program, decode_program, options_for, train_program
from launch.plans.gpus import Hosts
from launch.plans.hlo import read
from launch.plans.pricing import Price, price
from launch.plans.roofline import exchanges, roofline
from launch.plans.topology import Topology, devices_of
from model.generate.decode import CHUNK
from model.sharding import make_mesh
from train.metrics import train_flops_per_token

NOTE = "Compiled on this machine; nothing was run on a TPU. Times are estimates, and only differences above 10% count."
GPU_NOTE = (
    "Compiled on this machine, untuned; nothing was run on a GPU. No time is predicted: the bound is what no program "
    "can be faster than."
)


def make_plan(
    config: Config,
    topology: Topology | Hosts,
    step: str = "train",
    options: dict[str, str] | None = None,
    tokens: float = 0.0,
) -> dict[str, Any]:
    """Compile a step for a topology and say what it takes; on GPUs the time is only the least that it can be.

    Raises:
      ConfigError: the mesh does not fit the devices or the network, or the compiler refuses the program.
    """
    options = options_for(topology, options or {})
    mesh = make_mesh(config.mesh, devices_of(topology))
    lowered, inputs = (train_program if step == "train" else decode_program)(config, mesh)
    plan: dict[str, Any] = {
        "config": config.name,
        "step": step,
        "topology": topology.name,
        "slices": topology.slices,
        "chips": topology.chips,
        "devices": topology.devices,
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "batch_size": config.train.batch_size,
        "length": config.data.length,
        "note": GPU_NOTE if isinstance(topology, Hosts) else NOTE,
        "compiler": compiler_of(topology, options),
    }
    try:
        compiled = compile_program(lowered, inputs, options)
    except OutOfMemory as full:
        plan |= {"fits": False, "memory": memory_of(full.parts, full.needed, full.limit)}
        return plan | {"largest": buffers_of(full.buffers)}
    plan["compiler"]["seconds"] = round(compiled.seconds, 1)
    on_gpus = isinstance(topology, Hosts)
    peak = compiled.memory.allocated if on_gpus else compiled.memory.peak
    fits = not on_gpus or peak <= topology.chip.hbm  # For a GPU, XLA compiles also what cannot be run.
    plan |= {"fits": fits, "memory": memory_of(compiled.memory, peak, topology.chip.hbm)}
    plan["largest"] = buffers_of(compiled.buffers)
    program, memory, bandwidth = read(compiled.text), compiled.memory, topology.chip.bandwidth
    work_of = train_work if step == "train" else decode_work
    if on_gpus:
        work = work_of(config, memory, bandwidth, None)
        sent = exchanges(program, topology)
        seconds = sum(one.count * one.seconds for one in sent) / work.steps
        plan |= {"time": roofline(topology, work.flops, work.null, seconds), "collectives": collectives_of(sent, mesh)}
    else:
        found = price(program, topology.chip, topology.shape)
        work = work_of(config, memory, bandwidth, found.null)
        plan |= {"time": time_of(topology, found, work), "collectives": collectives_of(found.collectives, mesh)}
    per_second = work.tokens / plan["time"]["seconds"]
    plan["run"] = {"tokens_per_second": per_second}
    if tokens:
        hours = tokens / per_second / 3600
        plan["run"] |= {"tokens": tokens, "days": hours / 24, "chip_hours": hours * topology.chips}
    return plan


def compiler_of(topology: Topology | Hosts, options: dict[str, str]) -> dict[str, Any]:
    """Which compiler it was, with what options."""
    package = "jax-cuda12-pjrt" if isinstance(topology, Hosts) else "libtpu"
    found: dict[str, Any] = {name: importlib.metadata.version(name) for name in (package, "jax")}
    found |= {"options": options}
    return found | ({} if isinstance(topology, Hosts) else {"LIBTPU_INIT_ARGS": os.environ.get("LIBTPU_INIT_ARGS", "")})


def price_file(path: Path, topology: Topology | Hosts) -> dict[str, Any]:
    """The time of a program that somebody else has compiled, from its text (`*after_optimizations.txt` of a dump).

    Raises:
      ConfigError: the file is no such text, or the topology is not one of TPUs.
    """
    if isinstance(topology, Hosts):
        raise ConfigError(f"--hlo={path}: only programs for TPUs are priced, not for --topology={topology.name}.")
    try:
        program = read(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"--hlo={path}: {error}") from error
    found = price(program, topology.chip, topology.shape)
    return {
        "hlo": str(path),
        "topology": topology.name,
        "time": seconds_of(found, found.null) | parts_of(found),
        "collectives": collectives_of(found.collectives, None),
        "note": NOTE,
    }


@dataclass(frozen=True)
class Work:
    """What a compiled program does, by which its time is judged."""

    steps: int  # In the program.
    tokens: int  # Of each step, over all devices.
    flops: float  # Model FLOPs of each step, over all devices.
    null: float  # Seconds of each step by the simplest model; on a GPU, to move once what is kept.


def train_work(config: Config, memory: Memory, bandwidth: float, program_null: float | None) -> Work:
    """One step over the whole batch; without a null model of the program, what is kept is read and written once."""
    tokens = config.train.batch_size * config.data.length
    null = 2 * (memory.parameters + memory.optimizer) / bandwidth if program_null is None else program_null
    return Work(1, tokens, train_flops_per_token(config) * tokens, null)


def decode_work(config: Config, memory: Memory, bandwidth: float, program_null: float | None) -> Work:
    """CHUNK steps of one token in each text; the null model reads parameters and cache once per token."""
    flops = train_flops_per_token(config) / 3 * config.train.batch_size
    null = (memory.parameters + memory.cache) / bandwidth
    return Work(CHUNK, config.train.batch_size, flops, max(null, (program_null or 0.0) / CHUNK))


def memory_of(parts: Memory, peak: float, limit: float) -> dict[str, float]:
    """Bytes on each device."""
    return {
        "parameters": parts.parameters,
        "optimizer": parts.optimizer,
        "batch": parts.batch,
        "cache": parts.cache,
        "temporary": parts.temporary,
        "code": parts.code,
        "host": parts.host,
        "peak": peak,
        "limit": limit,
    }


def buffers_of(buffers: list[Buffer]) -> list[dict[str, Any]]:
    """The largest arrays on each device."""
    return [{"bytes": size, "what": what} for size, what in buffers]


def time_of(topology: Topology, found: Price, work: Work) -> dict[str, float]:
    """Seconds of one step, and the share of the chips' peak that its model FLOPs are."""
    times = seconds_of(found, work.null, work.steps)
    peak = topology.devices * topology.chip.flops
    shares = {f"mfu_{name}".removesuffix("_seconds"): work.flops / x / peak if x else 0.0 for name, x in times.items()}
    return times | shares | parts_of(found, work.steps) | {"model_flops": work.flops / topology.devices}


def seconds_of(found: Price, null: float, steps: int = 1) -> dict[str, float]:
    """Of one step of a program of so many, as predicted and between its bounds, beside the null model's."""
    names = {"seconds": "likely", "hidden": "hidden", "scheduled": "scheduled", "exposed": "exposed"}
    return {ours: getattr(found, name) / steps for ours, name in names.items()} | {"null": null}


def parts_of(found: Price, steps: int = 1) -> dict[str, float]:
    """What of a step are kernels and waits for memory, in seconds, and its operations."""
    return {name: getattr(found, name) / steps for name in ("kernels", "memory", "matmul_flops", "kernel_flops")}


def collectives_of(found: Iterable[Collective], mesh: Any) -> list[dict[str, Any]]:
    """Communication by kind and mesh axes (without a mesh: by the number of devices)."""
    groups: dict[tuple[str, str, bool], list[Collective]] = defaultdict(list)
    for collective in found:
        axes = "+".join(axes_of(collective.group, mesh)) or "-" if mesh else f"{len(collective.group)} devices"
        groups[collective.kind, axes, collective.exposed == 0].append(collective)
    rows = [
        {
            "kind": kind,
            "axes": axes,
            "hidden": hidden,
            "count": sum(one.count for one in several),
            "bytes": sum(one.count * one.bytes for one in several),
            "seconds": sum(one.count * one.seconds for one in several),
            "exposed": sum(one.count * one.exposed for one in several),
        }
        for (kind, axes, hidden), several in groups.items()
    ]
    return sorted(rows, key=lambda row: -row["seconds"])


def axes_of(group: tuple[int, ...], mesh: Any) -> list[str]:
    """The axes of the mesh along which the devices of a group differ."""
    places = np.array(np.unravel_index(np.array(group), mesh.devices.shape))
    return [axis for axis, place in zip(mesh.axis_names, places, strict=True) if len(set(place.tolist())) > 1]
