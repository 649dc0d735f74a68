"""The largest arrays of a program in a device's memory, from the report that the compiler writes beside it."""

from __future__ import annotations

import re
from pathlib import Path

from launch.plans.hlo import Program, read

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_LINE = re.compile(r"^\s*[\d.]+\w+\(\s*\d+%\);\s*([\d.]+)([KMGT]?i?B);\s*\d+;\s*\d+; (.*)$")
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
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    sizes = [(_bits(dtype) * _product(lengths), dtype, lengths) for dtype, lengths in arrays]
    _, dtype, lengths = max(sizes)
    shape = f"{dtype}[{lengths}]"
    sources = [
        instruction.source
        for computation in (program.computations.values() if program else ())
        for instruction in computation
        if instruction.source
        and any(array.dtype == dtype and ",".join(map(str, array.lengths)) == lengths for array in instruction.arrays)
    ]
    common = max(sources, key=sources.count) if sources else ""
    return f"{shape} {common}".strip()


def _bits(dtype: str) -> int:
    digits = re.findall(r"\d+", dtype)
    return int(digits[0]) if digits else 8


def _product(lengths: str) -> int:
    product = 1
    for length in lengths.split(","):
        product *= int(length or 1)
    return product
