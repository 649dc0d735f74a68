"""The largest arrays of a program in a device's memory, from the report that the compiler writes beside it."""

from __future__ import annotations

import re
from pathlib import Path

from launch.plans.hlo import Array, Program, read

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_LINE = re.compile(r"^\s*[\d.]+\w+\(\s*\d+%\);\s*([\d.]+)([KMGT]?)i?B;\s*\d+;\s*\d+; (.*)$")
Buffer = tuple[float, str]  # Bytes, and what lies there.


def largest(folder: Path, count: int = 8) -> list[Buffer]:
    """The largest places in the device's memory, and the array that made each so large, with where it comes from.

    Args:
      folder: what was given to the compiler as `xla_dump_to`; it is written also where a program does not fit.
    """
    reports = sorted(folder.glob("*memory-usage-report.txt"))
    if not reports:
        return []
    memory = reports[-1].read_text("utf-8").split("Memory Space:")[1]
    places = [match for line in memory.splitlines() if (match := _LINE.match(line))]
    programs = [*folder.glob("*oom_intermediate_module.txt"), *folder.glob("*after_optimizations.txt")]
    program = read(programs[0].read_text("utf-8")) if programs and places else None
    return [
        (float(place[1]) * UNITS[place[2]], _told(place[3], program))
        for place in sorted(places, key=lambda place: -float(place[1]) * UNITS[place[2]])[:count]
    ]


def _told(shapes: str, program: Program | None) -> str:
    """The largest array among those that lie in a place one after the other, and the operation that makes it."""
    arrays = [
        Array(dtype, tuple(int(length) for length in lengths.split(",") if length), fast=False)
        for dtype, lengths in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    ]
    largest = max(arrays, key=lambda array: (array.bytes, array.dtype, array.lengths))
    sources = [
        instruction.source
        for computation in (program.computations.values() if program else ())
        for instruction in computation
        if instruction.source
        and any((array.dtype, array.lengths) == (largest.dtype, largest.lengths) for array in instruction.arrays)
    ]
    common = max(sources, key=sources.count) if sources else ""
    return f"{largest.dtype}[{','.join(map(str, largest.lengths))}] {common}".strip()
