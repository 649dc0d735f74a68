"""Communication in a compiled program: what is sent, by whom, and how long the links take."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass

import numpy as np

from launch.plans.chips import Chip
from launch.plans.hlo import Instruction, Program

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")


LATENCY = 1e-6  # Seconds for each chip on the way: https://jax-ml.github.io/scaling-book/tpus/.
DCN_LATENCY = 1e-4  # Seconds for an exchange between slices: through the hosts, over the data centre's network.
START, DONE = "AsyncCollectiveStart", "AsyncCollectiveDone"  # Targets of custom calls.
STEPS, REDUCE_SCATTER = "async_collective_fusion", "all-reduce-scatter"  # How computations are named.


@dataclass(frozen=True)
class Collective:
    """One exchange, which a step makes `count` times."""

    kind: str
    bytes: int  # Of the whole array: what is gathered, reduced or exchanged.
    group: tuple[int, ...]  # The devices of the first group that exchange among themselves, by their number.
    seconds: float  # Over the links.
    asynchronous: bool
    source: str
    count: int = 1
    slices: bool = False  # Between slices, over the data centre's network.
    exposed: float = 0.0  # Seconds, of each, in which the core waits.

    @property
    def links(self) -> tuple[int, ...]:
        """What it waits for: permutations have the links of their direction, slices their network, others share."""
        return self.group if self.kind == "collective-permute" or self.slices else ()

    def repeated(self, times: int) -> Collective:
        """The same in a loop that goes round so often."""
        return dataclasses.replace(self, count=self.count * times)

    def waited(self, seconds: float) -> Collective:
        """The same, with what the core waited for it."""
        return dataclasses.replace(self, exposed=seconds)


def collective_of(program: Program, instruction: Instruction, chip: Chip, shape: tuple[int, ...]) -> Collective | None:
    """The exchange that an instruction makes or starts on slices of this shape; None if it makes none."""
    if instruction.opcode == "send" and (
        over := re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    ):
        return _between_slices(program, instruction, over[1], chip)
    exchange = exchange_of(program, instruction)
    return _priced(program, *exchange, chip, shape) if exchange else None


def exchange_of(program: Program, instruction: Instruction) -> tuple[Instruction, str, bool] | None:
    """The exchange within a slice, or among GPUs, that an instruction makes: itself or one in it, its kind, whether it
    only starts; None if there is none.

    On a TPU an exchange may stand in a fusion: one that starts it, steps of it beside computation, one that ends it;
    and a reduction of which each device keeps its part is an all-reduce in a fusion of the name all-reduce-scatter.
    """
    kind = instruction.opcode.removesuffix("-start")
    if kind in COLLECTIVES:
        return instruction, kind, instruction.opcode.endswith("-start")
    if instruction.opcode not in ("fusion", "async-start"):
        return None
    for name in instruction.calls:
        inside = list(program.computations[name])
        inner = next((one for one in inside if one.opcode in COLLECTIVES), None)
        if inner is None or name.startswith(STEPS) or any(one.target == DONE for one in inside):
            continue
        starts = instruction.opcode == "async-start" or any(one.target == START for one in inside)
        kind = "reduce-scatter" if name.startswith(REDUCE_SCATTER) else inner.opcode
        return inner, kind, starts
    return None


def whole_bytes(instruction: Instruction, kind: str, size: int) -> int:
    """Bytes of the whole array that an exchange among so many devices gathers, reduces or exchanges."""
    made = instruction.arrays
    if instruction.opcode.endswith("-start") and kind != "all-reduce":  # What goes in, what comes out, flags.
        given = len(instruction.operands)
        made = made[given : 2 * given]
    number = sum(array.bytes for array in made)
    return number * size if instruction.opcode.startswith("reduce-scatter") else number


def finishes(program: Program, instruction: Instruction) -> bool:
    """Whether an instruction waits for an exchange that another one has started."""
    if instruction.opcode == "fusion":
        return any(one.target == DONE for name in instruction.calls for one in program.computations[name])
    return instruction.opcode in ("async-done", "recv-done") or instruction.opcode.removesuffix("-done") in COLLECTIVES


def meeting(instruction: Instruction) -> str:
    """By what name the two ends of an exchange between slices find each other; empty for everything else."""
    match = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', instruction.attributes)
    return match[1] if match else ""


def _between_slices(program: Program, instruction: Instruction, transfer: str, chip: Chip) -> Collective:
    """An exchange over the data centre's network, of what each device of a slice has with its likes in the others."""
    kind = {"ONE_TO_ONE": "collective-permute"}.get(transfer) or transfer.lower().replace("_", "-")
    target = re.search(r'_xla_megascale_target="\{([^}]*)\}', instruction.attributes)
    slices = 2
    if target:
        first, _, last = target[1].partition(":")
        slices = int(last) - int(first) + 1 if last else len(target[1].split(","))
    group = tuple(index * program.partitions for index in range(slices))  # The program counts those of one slice.
    number = instruction.arrays[0].bytes
    share = {"all-reduce": 2 * (slices - 1) / slices, "collective-permute": 1}.get(kind, (slices - 1) / slices)
    seconds = share * number / chip.dcn + DCN_LATENCY
    return Collective(kind, number, group, seconds, True, instruction.source, slices=True)


def _priced(
    program: Program, instruction: Instruction, kind: str, asynchronous: bool, chip: Chip, shape: tuple[int, ...]
) -> Collective:
    group = first_group(instruction, program.partitions)
    size = max(1, len(group))
    whole = whole_bytes(instruction, kind, size)
    share = (size - 1) / size
    bandwidth = group_bandwidth(size, chip, shape)
    if kind == "all-reduce":
        seconds = 2 * whole * share / bandwidth
    elif kind == "collective-permute":
        seconds = whole / chip.link
    elif kind in ("all-to-all", "ragged-all-to-all"):
        # Each number goes a quarter of the way around a ring on average, not all of it.
        seconds = whole * share / bandwidth / 4 * max(1.0, math.log2(size) / 2)
    else:
        seconds = whole * share / bandwidth
    return Collective(kind, whole, group, seconds + LATENCY * hops(size, shape), asynchronous, instruction.source)


def hops(size: int, shape: tuple[int, ...]) -> int:
    """From one end of a group to the other, around rings."""
    far = 0
    for length in sorted(shape, reverse=True):
        along = min(length, size)
        far, size = far + max(1, along // 2) * (along > 1), -(-size // along)
    return far


def group_bandwidth(size: int, chip: Chip, shape: tuple[int, ...]) -> float:
    """Bytes per second that each device of a group can receive: over the links of as many axes as the group spans."""
    lengths, axes, reached = sorted(shape, reverse=True), 0, 1
    for length in lengths:
        if reached >= size:
            break
        reached, axes = reached * length, axes + 1
    closed = [length >= chip.wraps for length in lengths[: max(1, axes)]]
    # An axis that is no ring sends in both directions as well, but its ends have one link only.
    links = sum(2 if ring else 1 for ring in closed)
    if size > math.prod(shape) * chip.devices:
        return min(links * chip.link, chip.dcn * math.prod(shape))
    return links * chip.link


_MESH = re.compile(
    r"replica_groups=mesh\[(?P<axes>[^\]]*)\]"
    r"(?:, device_ids=\((?:\[(?P<lengths>[\d,]+)\](?:T\((?P<order>[\d,]+)\))?|(?P<ids>[\d,]+))\))?"
    r"\s*\{(?P<used>[^}]*)\}"
)


def first_group(instruction: Instruction, partitions: int) -> tuple[int, ...]:
    """The devices of the first group, in each of the ways in which HLO writes groups."""
    text = instruction.attribute("replica_groups") or instruction.attribute("source_target_pairs")
    if match := _MESH.search(instruction.attributes):
        axes = [(name, int(size)) for name, size in re.findall(r"'([^']+)'=(\d+)", match["axes"])]
        used = set(re.findall(r"'([^']+)'", match["used"]))
        group = [0]
        stride = math.prod(size for _, size in axes)
        for name, size in axes:
            stride //= size
            if name in used:
                group = [start + stride * index for start in group for index in range(size)]
        ids = _numbers(match["ids"] or "") or list(range(math.prod(size for _, size in axes)))
        if match["lengths"]:
            ids = _transposed(match["lengths"], match["order"])
        return tuple(ids[place] for place in group)
    if match := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        groups, *lengths = _numbers(match[1])
        size = math.prod(lengths) if lengths else groups
        return tuple(_transposed(match[2], match[3])[:size])
    if text.startswith("{{"):
        return tuple(_numbers(text[: text.find("}")]))
    return tuple(range(partitions))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _transposed(lengths: str, order: str | None) -> list[int]:
    """The numbers from 0 in the order of an array of these lengths after its axes have been put in that order."""
    whole = _numbers(lengths)
    return np.arange(math.prod(whole)).reshape(whole).transpose(_numbers(order) if order else None).ravel().tolist()
