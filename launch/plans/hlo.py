"""Reading a compiled program: the text of scheduled HLO as computations of instructions.

The text is what `compiled.as_text()` returns or `--xla_dump_to` writes as `*after_optimizations.txt`.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(")
_END = re.compile(r"^\}(,|\s*$)")  # `}}` may begin a line as well: of an attribute with line breaks.
_NAME = re.compile(r"%([\w.\-]+)")


@dataclass(frozen=True)
class Array:
    """One array of a shape: its element type, lengths, and whether it lies in the chip's fast memory (VMEM)."""

    dtype: str
    lengths: tuple[int, ...]
    fast: bool

    @property
    def bytes(self) -> int:
        """As in HBM, without padding."""
        bits = int(digits[0]) if (digits := re.findall(r"\d+", self.dtype)) else 0
        return math.prod(self.lengths) * BYTES.get(self.dtype, max(1, bits // 8))


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]  # What it makes; several if that is a tuple.
    operands: tuple[str, ...]
    attributes: str  # Everything after the operands, as it stands there.

    @functools.cached_property
    def calls(self) -> tuple[str, ...]:
        """The computations that it runs: a fusion's, a loop's body and condition, the branches of a choice."""
        single = re.findall(
            r"\b(?:calls|body|condition|true_computation|false_computation)=%([\w.\-]+)", self.attributes
        )
        several = re.search(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}", self.attributes)
        return (*single, *(_NAME.findall(several[1]) if several else ()))

    def attribute(self, name: str) -> str:
        """The value of `name=value` up to the next comma outside of brackets; empty where it is not given."""
        match = re.search(rf"\b{name}=", self.attributes)
        return _until_comma(self.attributes[match.end() :]) if match else ""

    @property
    def cycles(self) -> int | None:
        """How long the compiler thinks that it takes, in cycles; None where it does not say."""
        match = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(match[1]) if match else None

    @property
    def target(self) -> str:
        """What a custom call calls."""
        match = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return match[1] if match else ""

    @property
    def source(self) -> str:
        """The path of the operation in the traced program: `jit(train_step)/jvp(Decoder)/...`."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""

    @property
    def bytes(self) -> int:
        """Of what it makes."""
        return sum(array.bytes for array in self.arrays)


@dataclass
class Computation:
    """Instructions in the order in which they are started."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    root: str = ""

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    @property
    def parameters(self) -> list[Instruction]:
        """What it is given, in order."""
        found = [instruction for instruction in self if instruction.opcode == "parameter"]
        return sorted(found, key=lambda instruction: int(instruction.operands[0]))


@dataclass
class Program:
    """All computations of a compiled program."""

    computations: dict[str, Computation]
    entry: str
    partitions: int

    def trips(self, loop: Instruction) -> int:
        """How often a while loop goes round: what is known, or limit / step of the counter that its condition compares.

        A matrix multiplication that is fed piece by piece from other devices is a loop that counts in steps of two.

        Raises:
          ValueError: neither is there.
        """
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        condition = self.computations[loop.attribute("condition").lstrip("%")]
        inside = [condition, *(self.computations[name] for one in condition for name in one.calls)]
        limits = [int(one.operands[0]) for part in inside for one in part if _is_number(one)]
        counters = [int(one.attribute("index")) for one in condition if one.opcode == "get-tuple-element"]
        if not limits:
            raise ValueError(f"The loop {loop.name} does not say how often it goes round.")
        step = self._step(self.computations[loop.attribute("body").lstrip("%")], counters[0]) if counters else 1
        return -(-max(limits) // step)

    def _step(self, body: Computation, counter: int) -> int:
        """By how much a loop's body raises the counter at this place in what it carries."""
        name = body.instructions[body.root].operands[counter]
        while body.instructions[name].opcode == "copy":
            name = body.instructions[name].operands[0]
        added = (body.instructions[operand] for operand in body.instructions[name].operands)
        return next((int(one.operands[0]) for one in added if _is_number(one)), 1)


def _is_number(instruction: Instruction) -> bool:
    return instruction.opcode == "constant" and bool(instruction.operands) and instruction.operands[0].isdigit()


def read(text: str) -> Program:
    """The program that a text describes.

    Raises:
      ValueError: it is not the text of an HLO module.
    """
    computations: dict[str, Computation] = {}
    entry, current, pending = "", None, ""
    header = text[: text.find("\n")]
    for line in text.splitlines()[1:]:
        if current is None:
            match = _COMPUTATION.match(line)
            if match and line.rstrip().endswith("{"):
                current = computations.setdefault(match[2], Computation(match[2]))
                entry = match[2] if match[1] else entry
        elif _END.match(line):
            _add(current, pending)
            current, pending = None, ""
        elif _INSTRUCTION.match(line):
            _add(current, pending)
            pending = line
        else:  # An attribute with line breaks in it.
            pending += "\n" + line
    if not entry:
        raise ValueError("This is no text of a compiled program: no ENTRY computation.")
    partitions = re.search(r"num_partitions=(\d+)", header)
    return Program(computations, entry, int(partitions[1]) if partitions else 1)


def _add(computation: Computation, text: str) -> None:
    match = _INSTRUCTION.match(text)
    if not match:
        return
    rest = text[match.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    open_at = rest.find("(")
    close_at = open_at + _closing(rest[open_at:])
    opcode, inside, attributes = rest[:open_at], rest[open_at + 1 : close_at], rest[close_at + 1 :]
    operands = tuple(_NAME.findall(inside)) or ((inside.strip(),) if inside.strip() else ())
    arrays = tuple(
        Array(dtype, tuple(int(length) for length in lengths.split(",") if length), "S(1)" in layout)
        for dtype, lengths, layout in _ARRAY.findall(shape)
    )
    computation.instructions[match[2]] = Instruction(match[2], opcode, arrays, operands, attributes)
    computation.root = match[2] if match[1] else computation.root


def _closing(text: str) -> int:
    """Where the bracket that `text` starts with is closed."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return index
    return len(text)


def _until_comma(text: str) -> str:
    depth = 0
    for index, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth < 0 or (character == "," and depth == 0):
            return text[:index]
    return text
