"""Names of TPU slices, `v5e:16x16` or as they are sold, `v5e-256`, and their devices; of GPUs see gpus.py."""

from __future__ import annotations

import difflib
import math
import os
import re
from dataclasses import dataclass
from typing import Any

from configs.schema import ConfigError
from launch.plans import gpus
from launch.plans.chips import CHIPS, Chip
from launch.plans.gpus import GPUS, Hosts, devices_of_hosts, parse_hosts

# libtpu otherwise asks the cloud's metadata server what machine this is, and lets in one process only.
ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "JAX_PLATFORMS": "cpu",
}
ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "v5": "v5p", "v6": "v6e", "trillium": "v6e", "ironwood": "tpu7x"}


@dataclass(frozen=True)
class Topology:
    """Slices of chips, all alike."""

    chip: Chip
    shape: tuple[int, ...]  # Chips along each axis of the torus of one slice.
    slices: int = 1

    @property
    def name(self) -> str:
        """As it is written: `v5e:16x16`."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def rings(self) -> tuple[bool, bool, bool]:
        """Which axes are closed to a ring: of a torus of cubes all or none, else those of full length.

        https://cloud.google.com/tpu/docs/v5p and https://cloud.google.com/tpu/docs/v5e.
        """
        closed = [length % self.chip.wraps == 0 for length in self.shape]
        x, y, *z = [all(closed)] * 3 if self.chip.axes == 3 else closed
        return (x, y, bool(z) and z[0])

    @property
    def chips(self) -> int:
        """Over all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        """What JAX sees, over all slices."""
        return self.chips * self.chip.devices


def shape_of(chip: Chip, chips: int) -> tuple[int, ...] | None:
    """The shape in which a slice of so many chips is sold; None where there is none.

    Axes are powers of two, as equal as can be, the last the longest; the smallest slice is one host's 2x2.
    """
    if chips == 1 and chip.axes == 2:
        return (1, 1)
    exponent = chips.bit_length() - 1
    if chips != 2**exponent or chips < 4 or chips > chip.largest:
        return None
    if chips == 4:
        return (2, 2, 1)[: chip.axes]
    shares = [(exponent + axis) // chip.axes for axis in range(chip.axes)]
    return tuple(2**share for share in shares)


def parse(name: str, slices: int = 1) -> Topology | Hosts:
    """The topology of a name.

    A shape in chips, `v5e:4x8` or `v5p:4x4x8`, or a name as it is sold: `v5e-32` and `v6e-32` count chips, `v4-128`,
    `v5p-128` and `tpu7x-128` TensorCores, of which a chip has two. GPUs are `h100:8`, or `h100:4x8` on four hosts.

    Raises:
      ConfigError: there is no such slice; the message names the nearest that there are.
    """
    match = re.fullmatch(r"([a-z0-9]+)(?::(\d+(?:x\d+)*)|-(\d+))", name.strip().lower())
    kind = ALIASES.get(match[1], match[1]) if match else re.split("[:-]", name.lower())[0]
    if kind in GPUS:
        return parse_hosts(name, slices)
    if kind not in CHIPS:
        near = difflib.get_close_matches(kind, [*CHIPS, *GPUS, *ALIASES], n=1)
        guess = f" Did you mean {ALIASES.get(near[0], near[0])}?" if near else ""
        raise ConfigError(
            f"--topology={name}: the kinds of TPU are {', '.join(CHIPS)}, of GPU {', '.join(GPUS)}.{guess}"
        )
    chip = CHIPS[kind]
    if slices < 1:
        raise ConfigError(f"--slices={slices}: there is at least one.")
    per_name = chip.cores if chip.axes == 3 else 1
    if match and match[3]:
        shape = shape_of(chip, int(match[3]) // per_name) if int(match[3]) % per_name == 0 else None
        asked = int(match[3]) / per_name
    else:
        shape = tuple(map(int, match[2].split("x"))) if match else None
        asked = math.prod(shape) if shape else 0
        if shape and not _is_whole(chip, shape):
            shape = None
    if shape is None:
        raise ConfigError(f"--topology={name}: there is no such slice of {kind}. {_nearest(chip, asked)}")
    return Topology(chip, shape, slices)


def _is_whole(chip: Chip, shape: tuple[int, ...]) -> bool:
    """Whether a slice of this shape is made of whole hosts of 2x2 chips, and no larger than slices are."""
    if len(shape) != chip.axes or math.prod(shape) > chip.largest:
        return False
    return shape == (1, 1) or (shape[0] % 2 == 0 and shape[1] % 2 == 0 and all(size > 0 for size in shape))


def _nearest(chip: Chip, chips: float) -> str:
    """The slices next in size, by both of their names."""
    sizes = [2**exponent for exponent in range(14) if shape_of(chip, 2**exponent)]
    if not chips:
        near = sizes[:2]
    else:
        near = [*[size for size in sizes if size <= chips][-1:], *[size for size in sizes if size > chips][:1]]
    per_name = chip.cores if chip.axes == 3 else 1
    names = [f"{Topology(chip, shape_of(chip, size) or ()).name} ({chip.name}-{size * per_name})" for size in near]
    more = f" A slice has at most {chip.largest} chips; --slices=N takes several." if chips > chip.largest else ""
    return f"The nearest {'is' if len(names) == 1 else 'are'} {' and '.join(names)}.{more}"


def prepare(topology: Topology | Hosts) -> None:
    """Set what the compiler reads from the environment, where nobody has; what JAX reads counts before its import."""
    for name, value in (gpus.ENVIRONMENT if isinstance(topology, Hosts) else ENVIRONMENT).items():
        os.environ.setdefault(name, value)


def devices_of(topology: Topology | Hosts) -> list[Any]:
    """Devices that are not here, to make a mesh of; nothing can be put on them.

    Raises:
      ConfigError: the compiler (libtpu, the plugin for CUDA) is not installed, or knows no such slice.
    """
    prepare(topology)
    if isinstance(topology, Hosts):
        return devices_of_hosts(topology)
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise ConfigError("Compiling for a TPU needs libtpu: install the extra, `uv sync --extra tpu`.") from error
    from jax.experimental import topologies

    # Where libtpu is not told of the rings, it makes all-reduces of the gathers of 512 v5p.
    options: dict[str, Any] = {"wrap": topology.rings}
    if topology.chip.name == "v4":  # Its two cores work as one device, as they do in JAX on a real one.
        options |= {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}
    if topology.shape == (1, 1):
        options |= {"chips_per_host_bounds": (1, 1, 1)}
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    try:
        return list(topologies.get_topology_desc(topology.name, "tpu", **options).devices)
    except Exception as error:
        asked = math.prod(topology.shape)
        raise ConfigError(f"--topology={topology.name}: {error}. {_nearest(topology.chip, asked)}") from error
