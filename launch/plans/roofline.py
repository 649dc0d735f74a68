"""The least that a step takes on GPUs: what it computes, keeps and sends, each at the speed that the hardware has."""

from __future__ import annotations

import re

from launch.plans.collectives import Collective, exchange_of, first_group, whole_bytes
from launch.plans.gpus import Hosts
from launch.plans.hlo import Instruction, Program


def exchanges(program: Program, hosts: Hosts, computation: str = "") -> list[Collective]:
    """All communication of a program, loops multiplied by their trips; seconds are the least that links allow."""
    found: list[Collective] = []
    for instruction in program.computations[computation or program.entry]:
        if instruction.opcode == "while":
            inside = exchanges(program, hosts, instruction.attribute("body").lstrip("%"))
            found += [one.repeated(program.trips(instruction)) for one in inside]
        elif instruction.opcode in ("conditional", "call"):
            for name in instruction.calls or (instruction.attribute("to_apply").lstrip("%"),):
                found += exchanges(program, hosts, name)
        elif exchange := exchange_of(program, instruction):
            inner, kind, starts = exchange
            group = first_group(inner, program.partitions)
            whole = whole_bytes(inner, kind, max(1, len(group)))
            seconds = least_seconds(hosts, kind, whole, _crossing(inner, group))
            found.append(Collective(kind, whole, group, seconds, starts, inner.source))
    return found


def _crossing(instruction: Instruction, group: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The groups by which the time is judged: the first, since the others are alike; of permutations every pair."""
    pairs = re.findall(r"\{(\d+),(\d+)\}", instruction.attribute("source_target_pairs"))
    return [(int(source), int(target)) for source, target in pairs] or [group]


def least_seconds(hosts: Hosts, kind: str, whole: int, groups: list[tuple[int, ...]]) -> float:
    """What the slowest of the groups takes if each GPU receives nothing twice, over its NVLink and network at once.

    Args:
      whole: bytes of what is gathered or reduced; of what each GPU has to give in all-to-all and permutations.
    """
    slowest = 0.0
    for group in groups:
        size, of_host = len(group), [device // hosts.each for device in group]
        near = of_host.count(of_host[0])  # Members on a host.
        if kind == "collective-permute":
            inside, outside = (whole, 0.0) if near == size else (0.0, whole)
        elif kind in ("all-to-all", "ragged-all-to-all"):
            inside, outside = whole * (near - 1) / size, whole * (size - near) / size
        else:  # What other hosts have comes to a host once, over the network of all its members.
            inside, outside = whole * (size - 1) / size, whole * (1 - near / size) / near
            inside = inside if near > 1 else 0.0
        slowest = max(slowest, inside / hosts.chip.link, outside / hosts.chip.network)
    return slowest


def roofline(hosts: Hosts, flops: float, kept: float, sent: float) -> dict[str, float]:
    """Seconds of a step: the longest of three that all could run at once.

    Args:
      flops: the model's, over all devices.
      kept: seconds to move what is kept in memory, once.
      sent: seconds of communication.
    """
    compute = flops / (hosts.devices * hosts.chip.flops)
    least = max(compute, kept, sent)
    return {
        "seconds": least, "compute": compute, "memory": kept, "communication": sent,
        "mfu": compute / least if least else 0.0, "model_flops": flops / hosts.devices,
    }  # fmt: skip
