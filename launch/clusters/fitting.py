"""Whether a config fits on devices that are not here: asked before a job leaves this machine."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from configs.schema import Config, ConfigError
from launch.plans.gpus import Hosts
from launch.plans.topology import Topology, parse

CHIPS_PER_HOST = 4  # In every slice that has more than one chip; the machines with eight are for serving.
KINDS = {"v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite", "tpu7x": "TPU7x"}  # JAX's names.


@dataclass(frozen=True)
class Imagined:
    """What a mesh asks of a device: where it is on the torus of its slice."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    core_on_chip: int
    process_index: int
    platform: str
    device_kind: str


def slice_of_tpus(name: str, slices: int) -> Topology:
    """The TPUs of a name, as `launch.plan` reads it.

    Raises:
      ConfigError: there is no such slice, or it is of GPUs.
    """
    topology = parse(name, slices)
    if isinstance(topology, Hosts):
        raise ConfigError(f"--topology={name}: these are GPUs; --on=gke is for TPUs, --on=slurm for GPUs.")
    return topology


def hosts(topology: Topology) -> int:
    """Machines of one slice, each of which runs one process."""
    return max(1, math.prod(topology.shape) // CHIPS_PER_HOST)


def check_tpus(config: Config, topology: Topology) -> None:
    """Refuses a mesh that cannot be laid over the slices, and what it cannot share evenly; compiles nothing.

    Raises:
      ConfigError: names the numbers.
    """
    x, y, z = (*topology.shape, 1)[:3]
    number = itertools.count()
    places = itertools.product(range(topology.slices), range(z), range(y), range(x), range(topology.chip.devices))
    kind = KINDS[topology.chip.name]
    _check(config, [Imagined(next(number), part, (i, j, k), core, 0, "tpu", kind) for part, k, j, i, core in places])


def check_devices(config: Config, processes: int, each: int) -> None:
    """The same for so many processes with so many devices each."""
    _check(config, [Imagined(i, 0, (i, 0, 0), 0, i // each, "cpu", "cpu") for i in range(processes * each)])


def _check(config: Config, devices: list[Imagined]) -> None:
    from model.sharding import check_divisible, make_mesh

    check_divisible(config, make_mesh(config.mesh, devices))
