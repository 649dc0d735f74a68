"""Names of GPUs on hosts, `h100:8` or `h100:4x8` (hosts x GPUs on each), and the devices that they stand for."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from typing import Any

from configs.schema import ConfigError

# The plugin is asked for devices that are not here; those that may be here are left alone, and so is stderr.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "2"}
MIB = 2**20


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU: memory in bytes, rates per second and, for links, in one direction."""

    name: str
    title: str  # As CUDA calls it.
    memory: int  # That CUDA says it has.
    flops: float  # Peak of dense matrix multiplications in bfloat16.
    bandwidth: float  # Of HBM.
    link: float  # To the other GPUs of its host (NVLink).
    network: float  # To other hosts: its share.

    @property
    def hbm(self) -> float:
        """Usable bytes: the share that XLA's allocator takes of the memory, three quarters where nobody says.

        The rest is what CUDA, cuDNN and NCCL allocate for themselves.
        https://docs.jax.dev/en/latest/gpu_memory_allocation.html.
        """
        said = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION") or os.environ.get("XLA_CLIENT_MEM_FRACTION")
        return float(said or 0.75) * self.memory


# A DGX H100 or H200 has eight ports of 400 Gbit/s for eight GPUs: https://docs.nvidia.com/dgx/dgxh100-user-guide/.
NETWORK = 50e9

GPUS = {
    gpu.name: gpu
    for gpu in (
        # SXM: 989.4 TFLOP/s, 3.35 TB/s, NVLink 900 GB/s in both directions together: NVIDIA H100 Tensor Core GPU
        # Architecture (2022), table 2, and https://www.nvidia.com/en-us/data-center/h100/. CUDA has 551 MiB less than
        # the 81,559 MiB that nvidia-smi shows.
        Gpu("h100", "NVIDIA H100 80GB HBM3", (81559 - 551) * MIB, 989.4e12, 3.35e12, 450e9, NETWORK),
        # The same chip with 4.8 TB/s: https://www.nvidia.com/en-us/data-center/h200/. nvidia-smi: 143,771 MiB.
        Gpu("h200", "NVIDIA H200", (143771 - 551) * MIB, 989.4e12, 4.8e12, 450e9, NETWORK),
    )
}


@dataclass(frozen=True)
class Hosts:
    """Hosts with the same number of GPUs each."""

    chip: Gpu
    hosts: int
    each: int
    slices: int = 1  # Of TPUs; here for whoever reads plans of both.

    @property
    def name(self) -> str:
        """As it is written: `h100:4x8`."""
        return f"{self.chip.name}:{f'{self.hosts}x' if self.hosts > 1 else ''}{self.each}"

    @property
    def chips(self) -> int:
        """On all hosts."""
        return self.hosts * self.each

    @property
    def devices(self) -> int:
        """What JAX sees, on all hosts."""
        return self.chips


def parse_hosts(name: str, slices: int = 1) -> Hosts:
    """The GPUs of a name: `h100:8`, `h100:4x8`.

    Raises:
      ConfigError: it is no such name, a host would have more than eight, or there are slices.
    """
    match = re.fullmatch(r"(\w+):(?:(\d+)x)?(\d+)", name.strip().lower())
    kind = re.split("[:-]", name.strip().lower())[0]
    hosts, each = (int(match[2] or 1), int(match[3])) if match else (0, 0)
    if hosts < 1 or not 1 <= each <= 8:
        raise ConfigError(
            f"--topology={name}: write the GPUs of a host, at most 8, as {kind}:8, and several hosts as {kind}:4x8."
        )
    if slices != 1:
        raise ConfigError(f"--slices={slices}: GPUs have no slices; write hosts x GPUs, --topology={kind}:{slices}x8.")
    return Hosts(GPUS[kind], hosts, each)


def target(gpu: Gpu) -> str:
    """What XLA wants to know of a GPU that is not here, as its GpuTargetConfigProto in text.

    Limits of compute capability 9.0: https://docs.nvidia.com/cuda/cuda-c-programming-guide/ (technical specifications);
    132 multiprocessors with 128 lanes each, 50 MiB of L2, 1.98 GHz: NVIDIA H100 Tensor Core GPU Architecture (2022).
    """
    return f"""
        gpu_device_info {{
          cuda_compute_capability {{ major: 9 minor: 0 }}
          core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
          threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
          block_dim_limit_x: {2**31 - 1} block_dim_limit_y: {2**16 - 1} block_dim_limit_z: {2**16 - 1}
          registers_per_block_limit: {2**16} registers_per_core_limit: {2**16}
          shared_memory_per_block: {48 * 2**10} shared_memory_per_block_optin: {227 * 2**10}
          shared_memory_per_core: {228 * 2**10}
          l2_cache_size: {50 * MIB} memory_bandwidth: {gpu.bandwidth:.0f} device_memory_size: {gpu.memory}
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 8 }}
        runtime_version {{ major: 12 minor: 9 }}
        device_description_str: "{gpu.title}"
    """


def devices_of_hosts(hosts: Hosts) -> list[Any]:
    """Devices that are not here, to make a mesh of; nothing can be put on them.

    Raises:
      ConfigError: JAX's plugin for CUDA is not installed.
    """
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        raise ConfigError(
            f"--topology={hosts.name}: compiling for a GPU needs JAX's plugin for CUDA, though no GPU: install the "
            "extra, `uv sync --extra gpu`."
        )
    from jax.experimental import topologies

    shape = f"{hosts.hosts}x1x{hosts.each}"  # Partitions, which share NVLink; hosts in each; GPUs on each.
    described = topologies.get_topology_desc(
        topology_name=hosts.name, platform="cuda", target_config=target(hosts.chip), topology=shape
    )
    return list(described.devices)
