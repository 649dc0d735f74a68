"""Multiplications and additions in an instruction of a compiled program."""

from __future__ import annotations

import math
import re

from launch.plans.hlo import Computation, Instruction, Program


def matmul_flops(program: Program, computation: Computation, instruction: Instruction) -> float:
    """FLOPs of the matrix multiplications in an instruction and in what it calls, if that is a fusion."""
    if instruction.opcode == "convolution":
        return convolution_flops(computation, instruction)
    if instruction.opcode == "dot":
        return dot_flops(computation, instruction)
    if instruction.opcode not in ("fusion", "async-start", "call"):
        return 0.0
    called = (program.computations[name] for name in instruction.calls)
    return sum(matmul_flops(program, inner, one) for inner in called for one in inner)


def dot_flops(computation: Computation, instruction: Instruction) -> float:
    """2 x the numbers that it makes x the length of what is summed over."""
    left = computation.instructions[instruction.operands[0]].arrays[0].lengths
    summed = [int(axis) for axis in re.findall(r"\d+", instruction.attribute("lhs_contracting_dims"))]
    return 2.0 * math.prod(instruction.arrays[0].lengths) * math.prod(left[axis] for axis in summed)


def convolution_flops(computation: Computation, instruction: Instruction) -> float:
    """What a TPU makes of a matrix multiplication: its batch axes are a window's, most of which lies in the padding.

    Only places of the window that lie on numbers count, as in XLA's own HloCostAnalysis.
    """
    labels = instruction.attribute("dim_labels")
    left_labels, rest = labels.split("_", 1)
    right_labels, out_labels = rest.split("->")
    left, right = (computation.instructions[name].arrays[0].lengths for name in instruction.operands[:2])
    out = instruction.arrays[0].lengths
    window = instruction.attribute("window")
    at = lambda labels, letter, lengths: lengths[labels.index(letter)]  # noqa: E731
    flops = 2.0 * at(out_labels, "b", out) * at(out_labels, "f", out) * at(right_labels, "i", right)
    spatial = sorted(letter for letter in out_labels if letter.isdigit())
    sizes = _window(window, "size", len(spatial), 1)
    strides, dilated_left, dilated_right = (
        _window(window, name, len(spatial), 1) for name in ("stride", "lhs_dilate", "rhs_dilate")
    )
    padding = re.search(r"\bpad=([\d_x\-]+)", window)
    before = [int(pair.split("_")[0]) for pair in padding[1].split("x")] if padding else [0] * len(spatial)
    for axis, letter in enumerate(spatial):
        flops *= _pairs(
            at(left_labels, letter, left), at(out_labels, letter, out), sizes[axis], strides[axis],
            before[axis], dilated_left[axis], dilated_right[axis],
        )  # fmt: skip
    batches = re.search(r"batch_group_count=(\d+)", instruction.attributes)
    return flops / (int(batches[1]) if batches else 1)


def _window(window: str, name: str, count: int, default: int) -> list[int]:
    match = re.search(rf"\b{name}=([\dx]+)", window)
    return [int(number) for number in match[1].split("x")] if match else [default] * count


def _pairs(length: int, outputs: int, size: int, stride: int, before: int, dilated: int, spread: int) -> int:
    """Pairs (output, place in the window) that lie on a number."""
    if size == 1 and before == 0 and dilated == 1:
        return outputs
    count = 0
    for place in range(size):
        offset = place * spread - before
        if stride % dilated == 0:  # Then all outputs fall on numbers, or none does.
            if offset % dilated:
                continue
            first = max(0, -(offset // stride))
            last = min(outputs - 1, ((length - 1) * dilated - offset) // stride)
            count += max(0, last - first + 1)
        else:
            positions = (output * stride + offset for output in range(outputs))
            count += sum(p % dilated == 0 and 0 <= p // dilated < length for p in positions)
    return count
