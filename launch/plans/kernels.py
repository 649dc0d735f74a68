"""What attention kernels cost: splash, which the compiler takes for a call that it knows nothing about."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from launch.plans.bundles import Blocks, cycles
from launch.plans.chips import Chip
from launch.plans.hlo import Computation, Instruction

PALLAS = "tpu_custom_call"
ASSUMED = 0.5  # Of the peak, for a kernel whose instructions are not known.
# Matrix multiplications of blocks in each kernel: forward; gradients of keys and values; of queries.
MATMULS = {"fwd": 2, "dkv": 4, "dq": 3}


@dataclass(frozen=True)
class Kernel:
    """One call of a splash kernel."""

    which: str  # fwd, dkv or dq.
    rows: int  # Of blocks of queries (for dkv: of keys), over all texts and heads.
    pairs: int  # Of blocks that are visited.
    seen: int  # Of those, pairs in which somebody sees somebody.
    blocks: Blocks

    @property
    def flops(self) -> float:
        """Of the pairs that are computed."""
        return 2.0 * MATMULS[self.which] * self.seen * self.blocks.query * self.blocks.key * self.blocks.head_width

    def seconds(self, chip: Chip) -> float:
        """On a chip, by the instructions of the kernel; no faster than its matrix multiplications can be."""
        counted = cycles(chip.name, self.blocks)
        if self.which not in counted:
            return self.flops / (ASSUMED * chip.flops)
        each, cores = counted[self.which], chip.cores // chip.devices  # The heads are shared by the cores of a device.
        total = self.pairs * each.step + self.seen * each.block + self.rows * each.row
        return max(total / cores / chip.clock, self.flops / chip.flops)


def kernel_of(computation: Computation, instruction: Instruction) -> Kernel | None:
    """The splash kernel that an instruction calls; None if it calls something else.

    Queries are [.., N, T, H], keys [.., K, S, H]; the table of blocks [heads or 1, rows, pairs in a row] is left out
    where everybody sees everybody, and is narrower than the keys where there is a window.
    """
    if instruction.opcode != "custom-call" or instruction.target != PALLAS:
        return None
    name = re.search(r"splash_m[hq]a_(fwd|dkv|dq)", instruction.name + instruction.source)
    if not name:
        return None
    which = name[1]
    given = [
        computation.instructions[operand].arrays[0]
        for operand in instruction.operands
        if operand in computation.instructions and computation.instructions[operand].arrays
    ]
    heads = [array.lengths for array in given if array.dtype in ("bf16", "f32") and len(array.lengths) >= 3]
    query, key = heads[0], heads[1]
    suffix = {"fwd": "", "dkv": "_dkv", "dq": "_dq"}[which]
    size = lambda what, default: int(found[1]) if (found := _block(instruction, what)) else default  # noqa: E731
    blocks_query, blocks_key = size(f"block_q{suffix}", 512), size(f"block_kv{suffix}", 512)
    compute = size(f"block_kv{suffix}_compute", blocks_key)
    blocks = Blocks(query[-1], blocks_query, blocks_key, compute)
    down, across = max(1, query[-2] // blocks_query), max(1, key[-2] // blocks_key)
    tables = [array.lengths for array in given if array.dtype == "s8" and len(array.lengths) == 3]
    width = tables[0][1 if which == "dkv" else 2] if tables else across
    texts = math.prod(query[:-2])
    # Query block i sees the keys up to its end.
    sees = [min(width, -(-(i + 1) * blocks_query // blocks_key)) if tables else across for i in range(down)]
    return Kernel(
        which, rows=texts * (across if which == "dkv" else down), pairs=texts * down * min(width, across),
        seen=texts * sum(min(one, across) for one in sees), blocks=blocks,
    )  # fmt: skip


def _block(instruction: Instruction, what: str) -> re.Match[str] | None:
    return re.search(rf'\\*"{what}\\*": (\d+)', instruction.attributes)
