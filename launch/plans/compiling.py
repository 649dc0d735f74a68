"""The step of a training run, or one token of decoding, compiled for devices that are not here."""

from __future__ import annotations

import dataclasses
import math
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from configs.derived import fills_in, source_length, translates
from configs.schema import Config, ConfigError
from launch.plans.buffers import UNITS, Buffer, largest
from launch.plans.chips import CHIPS
from launch.plans.gpus import Hosts
from launch.plans.topology import Topology
from model import build
from model.generate.cache import cache_axes, empty_cache, ring_slots
from model.generate.choose import Sampling
from model.generate.decode import CHUNK, Rows, State, decode_chunk
from model.sharding import batch_sharding, check_divisible, param_shardings, parameter_shapes, partition
from train.optimizer import make_optimizer
from train.step import jit_train_step, make_train_step, state_shape

# Gathers and permutations run beside computation everywhere; MaxText gives libtpu these for its published runs.
ASYNCHRONOUS = {"xla_enable_async_all_gather": "true", "xla_enable_async_collective_permute": "true"}
# Only on a v5e may they be fused with computation (the compiler refuses it elsewhere).
FUSED = {
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
}
OPTIONS = {chip: ASYNCHRONOUS for chip in CHIPS} | {"v5e": ASYNCHRONOUS | FUSED}
UNTUNED = {"xla_gpu_autotune_level": "0"}  # Trying out kernels takes a GPU.


@dataclass(frozen=True)
class Memory:
    """Bytes on each device."""

    parameters: int
    optimizer: int  # Moments, averages, counters: the state without the parameters.
    batch: int
    temporary: int = 0  # Activations, gradients, gathered parameters: what the step needs while it runs.
    code: int = 0
    peak: int = 0
    allocated: int = 0  # All of it at once: a GPU keeps room for every argument, result and temporary array.
    cache: int = 0  # Keys and values of decoding.
    host: int = 0  # In the host's memory, if anything is offloaded.


@dataclass(frozen=True)
class Compiled:
    """A program as it would run."""

    text: str  # Scheduled HLO.
    memory: Memory
    buffers: list[Buffer]  # The largest.
    seconds: float  # That compiling took.


class OutOfMemory(Exception):  # noqa: N818 - an answer, not a failure
    """The compiler found that the program does not fit; `buffers` are the largest."""

    def __init__(self, needed: float, limit: float, buffers: list[Buffer], parts: Memory) -> None:
        super().__init__(f"needs {needed / 2**30:.2f} GiB of {limit / 2**30:.2f}")
        self.needed, self.limit, self.buffers, self.parts = needed, limit, buffers, parts


def train_program(config: Config, mesh: jax.sharding.Mesh) -> tuple[Any, Memory]:
    """The lowered train step of `train/step.py`, and the bytes that go into it."""
    check_divisible(config, mesh)
    module = build(config)
    optimizer = make_optimizer(config, parameter_shapes(module))
    state = state_shape(module, optimizer, config, mesh)
    sharding = batch_sharding(mesh)

    def rows(length: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((config.train.batch_size, length), jnp.int32, sharding=sharding)

    batch = {name: rows(config.data.length) for name in ("inputs", "targets", "segments", "positions")}
    if translates(config):
        sources = rows(source_length(config.data))
        batch |= {name: sources for name in ("source", "source_segments", "source_positions")}
    step = make_train_step(module, optimizer, config)
    jitted: Any = jit_train_step(step, jax.tree.map(lambda leaf: leaf.sharding, state), sharding)
    with jax.set_mesh(mesh):
        lowered = jitted.lower(state, batch)
    parameters = bytes_on_a_device(state.params)
    return lowered, Memory(parameters, bytes_on_a_device(state) - parameters, bytes_on_a_device(batch))


def decode_program(config: Config, mesh: jax.sharding.Mesh) -> tuple[Any, Memory]:
    """The lowered loop of `model/generate` that writes CHUNK tokens of train.batch_size texts of data.length tokens.

    Raises:
      ConfigError: the network writes nothing, or the texts cannot be shared by the mesh.
    """
    if fills_in(config):
        raise ConfigError(f"--step=decode: a network of the kind {config.model.network} does not write text.")
    check_divisible(config, mesh)
    module, rows, sharding = build(config), config.train.batch_size, batch_sharding(mesh)
    params = jax.tree.map(
        lambda x, lies: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies),
        parameter_shapes(module), param_shardings(module, mesh),
    )  # fmt: skip

    def of_rows(*shape: int, dtype: Any) -> Any:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=sharding)

    def kept(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        at = jax.sharding.NamedSharding(mesh, partition(*cache_axes(path, leaf)))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at)

    slots, sources = config.data.length, source_length(config.data) if translates(config) else 0
    with jax.set_mesh(mesh):  # What is kept, and how, depends on the platform.
        ring = ring_slots(config, slots, apart=False)
        shapes = jax.eval_shape(lambda: empty_cache(config, rows, slots, sources, ring))
    cache = jax.tree_util.tree_map_with_path(kept, shapes)
    texts = Rows.of(
        [[0]] * rows, [Sampling()] * rows, config.tokenizer.vocab_size,
        limits=[slots] * rows, seeds=[0] * rows, ends=[[0]] * rows, tops=[0] * rows,
    )  # fmt: skip
    texts = jax.tree.map(lambda x: of_rows(*x.shape[1:], dtype=x.dtype), texts)
    with jax.set_mesh(mesh):
        lowered = decode_chunk.lower(module, CHUNK, 0, params, State(cache, texts))
    return lowered, Memory(bytes_on_a_device(params), 0, 0, cache=bytes_on_a_device(cache))


def bytes_on_a_device(tree: Any) -> int:
    """Of arrays (`jax.ShapeDtypeStruct`) that are spread over a mesh."""
    return sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(tree))


def compile_program(lowered: Any, inputs: Memory, options: dict[str, str]) -> Compiled:
    """Compile what was lowered.

    Raises:
      OutOfMemory: it does not fit into the device's memory.
      ConfigError: the compiler refuses an option.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            compiled = lowered.compile(compiler_options={**options, "xla_dump_to": folder})
        except jax.errors.JaxRuntimeError as error:
            raise _understood(str(error), inputs, largest(Path(folder))) from error
        buffers = largest(Path(folder))
    seconds = time.perf_counter() - began
    stats = compiled.memory_analysis()
    memory = dataclasses.replace(
        inputs,
        temporary=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
        peak=stats.peak_memory_in_bytes,
        allocated=stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes,
        host=stats.host_temp_size_in_bytes + stats.host_argument_size_in_bytes,
    )
    return Compiled(compiled.as_text(), memory, buffers, seconds)


def _understood(message: str, inputs: Memory, buffers: list[Buffer]) -> Exception:
    """The compiler's complaint as ours."""
    if option := re.search(r"No such compile option: '([^']*)'", message):
        return ConfigError(f"--options: this compiler has no option {option[1]}.")
    size = r"\(?([\d.]+)([KMGT]?)\)?"
    full = re.search(rf"Used {size} of {size}|{size} exceeds available HBM {size}", message)
    if "RESOURCE_EXHAUSTED" not in message or not full:
        return ConfigError(f"The compiler refuses this program: {message.strip()[:2000]}")
    needed, needed_unit, limit, limit_unit = (group for group in full.groups() if group is not None)
    return OutOfMemory(float(needed) * UNITS[needed_unit], float(limit) * UNITS[limit_unit], buffers, inputs)


def options_for(topology: Topology | Hosts, more: dict[str, str]) -> dict[str, str]:
    """The compiler's options for a kind of chip, and those asked for besides."""
    return {**(UNTUNED if isinstance(topology, Hosts) else OPTIONS[topology.chip.name]), **more}
