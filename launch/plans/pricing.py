"""What a compiled program costs on a chip: a walk along its schedule, with the loops multiplied by their trips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from launch.plans.chips import Chip
from launch.plans.collectives import Collective, collective_of, finishes, meeting
from launch.plans.flops import matmul_flops
from launch.plans.hlo import Computation, Instruction, Program
from launch.plans.kernels import kernel_of

NULL = 0.72  # Of the peak: matrix multiplications over the time of a whole step, in published runs of large models.
# What the matrix multiplications themselves reach in such runs (docs/plan.md says how this was found). The compiler
# guesses from 50% to 98% for them, depending on what is fused with them; below that they are bound by something else,
# such as memory, and its guess is taken.
REACHED = 0.87
HIDEABLE = ("all-gather", "collective-permute")
TRUSTED = 0.5


@dataclass
class Costs:
    """Of a computation, once."""

    busy: float = 0.0  # Seconds in which the core computes.
    elapsed: float = 0.0  # Seconds with the waits for collectives that the schedule does not hide.
    likely: float = 0.0  # Seconds with those waits that no compiler is known to hide.
    matmul_flops: float = 0.0
    kernel_flops: float = 0.0  # Of Pallas kernels, which the compiler knows nothing about.
    kernels: float = 0.0  # Their seconds, part of `busy`.
    memory: float = 0.0  # Seconds in which the core waits for copies from HBM to the fast memory.
    collectives: list[Collective] = field(default_factory=list)

    def add(self, other: Costs, times: int) -> None:
        """Another computation, which is run so many times."""
        for name in ("busy", "elapsed", "likely", "matmul_flops", "kernel_flops", "kernels", "memory"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        self.collectives += [collective.repeated(times) for collective in other.collectives]


@dataclass(frozen=True)
class Price:
    """What one step takes, in seconds."""

    hidden: float  # If all communication is hidden behind computation.
    likely: float  # If gathers and permutations are hidden as far as there is computation: the prediction.
    scheduled: float  # As this compiler has scheduled it.
    exposed: float  # If no communication is hidden.
    null: float  # Matrix multiplications alone, at NULL of the peak.
    kernels: float  # Of `hidden`, Pallas kernels.
    memory: float  # Of `hidden`, waits for copies from HBM to the fast memory.
    matmul_flops: float
    kernel_flops: float
    collectives: tuple[Collective, ...]


def price(program: Program, chip: Chip, shape: tuple[int, ...]) -> Price:
    """The price of a program on slices of this shape."""
    costs = _walk(program, program.computations[program.entry], chip, shape)
    communication = sum(collective.seconds * collective.count for collective in costs.collectives)
    return Price(
        hidden=costs.busy + costs.memory,
        likely=costs.likely,
        scheduled=costs.elapsed,
        exposed=costs.busy + costs.memory + communication,
        null=costs.matmul_flops / (NULL * chip.flops),
        kernels=costs.kernels,
        memory=costs.memory,
        matmul_flops=costs.matmul_flops,
        kernel_flops=costs.kernel_flops,
        collectives=tuple(costs.collectives),
    )


def _walk(program: Program, computation: Computation, chip: Chip, shape: tuple[int, ...]) -> Costs:
    """Start the instructions one after the other; a transfer that was started goes on meanwhile.

    Transfers over links wait for each other (permutations for those that go the same way: the others have links of
    their own), and so do those between HBM and the fast memory; whoever needs one that is not done waits.

    Compilers have hidden gathers and permutations better from one release to the next, also where the schedule shows
    none of it: for `likely` they hide behind all that the same computation does, as far as that lasts.
    """
    costs, now, memory_free, loops = Costs(), 0.0, 0.0, Costs()
    links_free: dict[tuple[int, ...], float] = {}
    sent: dict[str, tuple[float, Collective]] = {}  # When it will be done.
    copied: dict[str, float] = {}
    for instruction in computation:
        if instruction.opcode == "while":
            trips = program.trips(instruction)
            body = program.computations[instruction.attribute("body").lstrip("%")]
            inside = _walk(program, body, chip, shape)
            loops.add(inside, trips)
            now += trips * inside.elapsed
        elif instruction.opcode in ("conditional", "call") and instruction.calls:
            branches = [_walk(program, program.computations[name], chip, shape) for name in instruction.calls]
            longest = max(branches, key=lambda branch: branch.elapsed)
            loops.add(longest, 1)
            now += longest.elapsed
        elif collective := collective_of(program, instruction, chip, shape):
            begins = max(now, links_free.get(collective.links, 0.0))
            done = links_free[collective.links] = begins + collective.seconds
            if collective.asynchronous:
                sent[meeting(instruction) or instruction.name] = (done, collective)
            else:
                costs.collectives.append(collective.waited(done - now))
                now = done
        elif finishes(program, instruction) and (start := _started_by(computation, instruction, sent)):
            ready, collective = sent.pop(start)
            waited = max(0.0, ready - now)
            costs.collectives.append(collective.waited(waited))
            now += waited
        elif instruction.opcode in ("copy-start", "slice-start"):
            memory_free = max(now, memory_free) + _copied(computation, instruction) / chip.bandwidth
            copied[instruction.name] = memory_free
        elif instruction.opcode in ("copy-done", "slice-done"):
            waited = max(0.0, copied.get(instruction.operands[0], 0.0) - now)
            costs.memory += waited
            now += waited
        else:
            seconds = _seconds(program, computation, instruction, chip, costs)
            costs.busy += seconds
            now += seconds
    hideable: dict[tuple[int, ...], float] = {}
    for collective in costs.collectives:
        if collective.kind in HIDEABLE:
            hideable[collective.links] = hideable.get(collective.links, 0.0) + collective.seconds
        else:
            costs.likely += collective.exposed
    costs.likely = max(costs.likely + costs.busy + costs.memory, *hideable.values(), 0.0)
    costs.add(loops, 1)
    costs.elapsed = now
    return costs


def _copied(computation: Computation, instruction: Instruction) -> int:
    """Bytes that a copy between HBM and the fast memory moves; 0 within the fast memory."""
    source = computation.instructions[instruction.operands[0]]
    into = instruction.arrays[0 if instruction.opcode == "copy-start" else len(source.arrays)]
    return into.bytes if not (into.fast and source.arrays and source.arrays[0].fast) else 0


def _started_by(computation: Computation, instruction: Instruction, pending: Mapping[str, object]) -> str | None:
    """The pending transfer that an instruction depends on; steps of it may stand in between."""
    seen, stack = set(), list(instruction.operands)
    while stack:
        name = stack.pop()
        if name in computation.instructions and (met := meeting(computation.instructions[name])) in pending:
            return met
        if name in pending:
            return name
        if name not in seen and name in computation.instructions:
            seen.add(name)
            stack += computation.instructions[name].operands
    return None


def _seconds(program: Program, computation: Computation, instruction: Instruction, chip: Chip, costs: Costs) -> float:
    """What the core spends on an instruction; counts its operations."""
    if kernel := kernel_of(computation, instruction):
        seconds = kernel.seconds(chip)
        costs.kernel_flops += kernel.flops
        costs.kernels += seconds
        return seconds
    guessed = (instruction.cycles or 0) / chip.clock
    flops = matmul_flops(program, computation, instruction)
    costs.matmul_flops += flops
    return flops / (REACHED * chip.flops) if flops > TRUSTED * guessed * chip.flops else guessed
