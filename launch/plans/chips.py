"""What one chip of each kind can do, with where each figure was published.

Peaks, HBM bandwidths and sizes: https://cloud.google.com/tpu/docs/v4 (v5e, v5p, v6e, tpu7x alike). Links: the sum over
a chip's links on the same pages, and https://jax-ml.github.io/scaling-book/tpus/ per link and direction. Usable HBM is
what libtpu itself allows a program (it says so when one does not fit), a little less than what the chip has.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """A kind of TPU. Figures are per device: what JAX calls one, which is half a chip for tpu7x."""

    name: str
    axes: int  # Of its torus.
    devices: int  # Per chip.
    cores: int  # TensorCores per chip: what the marketing names of v4, v5p and tpu7x count.
    largest: int  # Chips in one slice, at most.
    hbm: float  # Usable bytes.
    flops: float  # Peak of matrix multiplications in bfloat16, per second.
    bandwidth: float  # Of HBM, bytes per second.
    link: float  # Bytes per second of a link of the torus, in one direction; each axis has a link in both.
    dcn: float  # Bytes per second to other slices.
    clock: float  # Hz, for the compiler's cycles.
    wraps: int  # Axes of at least so many chips are closed to a ring.


# The network of a host, 200 Gbit/s (100 for v4) for its four chips; the Scaling Book's figure per chip.
DCN = 6.25e9

CHIPS = {
    chip.name: chip
    for chip in (
        # 275 TFLOP/s, 1228 GB/s, 6 links of 50 GB/s; 1.05 GHz: Jouppi et al. 2023 (arXiv 2304.01433), table 4.
        Chip("v4", 3, 1, 2, 4096, 30.75 * GIB, 275e12, 1228e9, 45e9, DCN / 2, 1.05e9, 4),
        # 197 TFLOP/s, 819 GB/s, 4 links of 400 Gbit/s. 4 matrix units of 128 x 128 reach the peak at 1.5 GHz.
        Chip("v5e", 2, 1, 1, 256, 15.75 * GIB, 197e12, 819e9, 45e9, DCN / 2, 1.5e9, 16),
        # 459 TFLOP/s, 2765 GB/s, 6 links of 800 Gbit/s. 2 cores with 4 units each: 1.75 GHz.
        Chip("v5p", 3, 1, 2, 8960, 95.73 * GIB, 459e12, 2765e9, 90e9, DCN, 1.75e9, 4),
        # 918 TFLOP/s, 1640 GB/s, 4 links of 800 Gbit/s. 4 units of 256 x 256 at 1.75 GHz.
        Chip("v6e", 2, 1, 1, 256, 31.24 * GIB, 918e12, 1640e9, 90e9, DCN, 1.75e9, 16),
        # 2307 TFLOP/s, 7380 GB/s per chip, 6 links of 200 GB/s in both directions together, for two devices.
        Chip("tpu7x", 3, 2, 2, 9216, 94.74 * GIB, 1153.5e12, 3690e9, 90e9, DCN, 2.2e9, 4),
    )
}
