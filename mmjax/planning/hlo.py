"""The text of a compiled program, as data: computations, instructions, how often each runs, where it came from.

XLA prints a module as computations of instructions, in the order in which a chip carries them out where the text says
`is_scheduled=true`. The text for TPUs has no trip counts: a counted loop's stand in its condition, `i < 24`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16,
    "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128, "token": 0, "opaque": 0,
    "f4e2m1fn": 4, "f8e4m3": 8, "f8e4m3fn": 8, "f8e4m3b11fnuz": 8, "f8e4m3fnuz": 8, "f8e5m2": 8, "f8e5m2fnuz": 8,
    "f8e3m4": 8, "f8e8m0fnu": 8,
}  # fmt: skip

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
_INSTRUCTION = re.compile(r"(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape: dtype, dimensions and layout, like `2,1,0:T(8,128)(2,1)S(1)`."""

    dtype: str
    dimensions: tuple[int, ...]
    layout: str

    @property
    def bytes(self) -> int:
        """Of the values alone."""
        return math.prod(self.dimensions) * _BITS[self.dtype] // 8

    @property
    def on_chip(self) -> bool:
        """Whether it lies in a TPU's vector or scalar memory, and takes nothing of the main memory."""
        return "S(" in self.layout

    @property
    def padded_bytes(self) -> int:
        """What it takes in a memory of tiles: a TPU rounds the last two dimensions up, to 8 x 128 for example."""
        order, tile = re.match(r"([\d,]*)(?::T\(([\d,]+)\))?", self.layout).groups()  # type: ignore[union-attr]
        if not tile:
            return self.bytes
        sizes = [self.dimensions[int(axis)] for axis in order.split(",") if axis]
        for position, side in enumerate(reversed([int(side) for side in tile.split(",")])):
            if position < len(sizes):
                sizes[position] = -(-sizes[position] // side) * side
            else:
                sizes.append(side)
        return math.prod(sizes) * _BITS[self.dtype] // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: without "%".
      shape: the text of its shape.
      opcode: like "fusion".
      operands: the names of its operands.
      attributes: the text after the operands.
      root: whether it is the computation's result.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @functools.cached_property
    def arrays(self) -> list[Array]:
        """The arrays of its result."""
        return [
            Array(dtype, tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size), layout or "")
            for dtype, sizes, layout in _ARRAY.findall(re.sub(r"/\*.*?\*/", "", self.shape))
        ]

    def attribute(self, name: str) -> str | None:
        """A name or number after `name=`, without "%"."""
        match = re.search(rf"(?:^|[ ,]){name}=%?([\w.\-]+)", self.attributes)
        return match[1] if match else None

    @property
    def cycles(self) -> int:
        """The compiler's estimate for one run; 0 where it has none."""
        match = re.search(r'"estimated_cycles":"?(\d+)', self.attributes)
        return int(match[1]) if match else 0

    @property
    def operation(self) -> str:
        """The name that JAX gave what it was made from, like "jit(step)/jvp()/dot_general"."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions in their order."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self.instructions}

    @property
    def root(self) -> Instruction:
        return next(instruction for instruction in self.instructions if instruction.root)


class Module:
    """A compiled program.

    Args:
      text: of `compiled.as_text()`.

    Attributes:
      computations: by name.
      entry: where the program begins.
      instructions: of all computations, by name.
    """

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.locations = _locations(text)
        name: str | None = None
        entry: str | None = None
        lines: list[str] = []
        for line in text.splitlines():
            if name is None:
                match = _COMPUTATION.match(line)
                if match:
                    name, lines = match[2], []
                    entry = name if match[1] else entry
            elif line == "}" or line.startswith('}, execution_thread="'):
                self.computations[name] = Computation(name, tuple(map(_parse, lines)))
                name = None
            elif re.match(r" +" + _INSTRUCTION.pattern, line):
                lines.append(line.strip())
            elif lines:
                # What a kernel says of itself may go over several lines.
                lines[-1] += line
        if entry is None:
            raise ValueError("the text is no compiled HLO module: it has no ENTRY")
        self.entry = self.computations[entry]
        self.instructions = {
            line.name: line for computation in self.computations.values() for line in computation.instructions
        }

    def called(self, instruction: Instruction) -> list[Computation]:
        """The computations that an instruction runs as steps of the program, each once: not loops, not fusions."""
        if instruction.opcode == "call":
            names = [instruction.attribute("to_apply")]
        elif instruction.opcode == "async-start":
            names = [instruction.attribute("calls")]
        elif instruction.opcode == "conditional":
            found = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
            names = [name.strip().lstrip("%") for name in found[1].split(",")] if found else []
            names += [instruction.attribute("true_computation"), instruction.attribute("false_computation")]
        else:
            names = []
        return [self.computations[name] for name in names if name in self.computations]

    def inside(self, instruction: Instruction) -> Iterator[Instruction]:
        """The instruction itself and all that it is made of: what a fusion or an async wrapper holds, at any depth."""
        yield instruction
        # A TPU's sparse cores carry out collectives, each a call of its own beside the program.
        name = instruction.attribute("to_apply" if instruction.opcode == "call-start" else "calls")
        if name in self.computations:
            for inner in self.computations[name].instructions:
                yield from self.inside(inner)

    def runs(self) -> dict[str, int]:
        """{computation: how often a run of the program carries it out}, of those that are steps of the program."""
        runs: dict[str, int] = {}

        def visit(computation: Computation, times: int) -> None:
            runs[computation.name] = runs.get(computation.name, 0) + times
            for instruction in computation.instructions:
                if instruction.opcode == "while":
                    visit(self.computations[str(instruction.attribute("body"))], times * self.trips(instruction))
                for called in self.called(instruction):
                    visit(called, times)

        visit(self.entry, 1)
        return runs

    def trips(self, loop: Instruction) -> int:
        """How often the body of a counted loop runs.

        Raises:
          ValueError: where the data decides it.
        """
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        condition = self.computations[str(loop.attribute("condition"))]
        root = condition.root
        if root.opcode == "fusion":
            # The comparison of a loop that a CPU runs is a fusion of its own.
            condition = self.computations[str(root.attribute("calls"))]
            root = condition.root
        constants = [_constant(condition.by_name.get(name)) for name in root.operands]
        limits = [value for value in constants if value is not None]
        if not limits:
            outer = self.computations[str(loop.attribute("condition"))]
            limits = [value for line in outer.instructions if (value := _constant(line)) is not None]
        if root.opcode != "compare" or len(limits) != 1 or root.attribute("direction") not in ("LT", "GT", "LE", "GE"):
            raise ValueError(f"the loop {loop.name} is not counted: nobody knows how often it runs")
        start, step = self._counter(loop)
        limit = limits[0] + (root.attribute("direction") == "LE")
        return max(0, -(-(limit - start) // step))

    def _counter(self, loop: Instruction) -> tuple[int, int]:
        """Where the number that a loop's condition looks at begins, and by what it grows; 0 and 1, as JAX counts, where
        the text does not say it plainly."""
        condition = self.computations[str(loop.attribute("condition"))]
        body = self.computations[str(loop.attribute("body"))]
        places = [line.attribute("index") for line in condition.instructions if line.opcode == "get-tuple-element"]
        caller = next(each for each in self.computations.values() if loop.name in each.by_name)
        first = caller.by_name.get(loop.operands[0])
        if len(places) != 1 or body.root.opcode != "tuple" or first is None or first.opcode != "tuple":
            return 0, 1
        place = int(str(places[0]))
        start = _constant(_origin(caller, first.operands[place]))
        added = _origin(body, body.root.operands[place])
        steps = [_constant(_origin(body, name)) for name in added.operands] if added and added.opcode == "add" else []
        step = next((value for value in steps if value), 1)
        return start or 0, step

    def location(self, instruction: Instruction) -> str:
        """The "file.py:line" of what the instruction, or the largest part of it, was made from; "" if unknown."""
        for inner in self.inside(instruction):
            frame = inner.attribute("stack_frame_id")
            if frame and int(frame) in self.locations:
                return self.locations[int(frame)]
            match = re.search(r'source_file="([^"]*)" source_line=(\d+)', inner.attributes)
            if match:
                return f"{match[1]}:{match[2]}"
        return ""


def _parse(line: str) -> Instruction:
    match = _INSTRUCTION.match(line)
    assert match is not None
    rest = line[match.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest) - 1
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[:end]))
    attributes = rest[end + 1 :].lstrip(", ")
    if opcode in ("constant", "parameter"):
        attributes = f"value={rest[:end]} {attributes}"
    return Instruction(match[2], shape, opcode, operands, attributes, bool(match[1]))


def _closing(text: str) -> int:
    """The place of the bracket that closes the one that the text begins with."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place
    return len(text)


def _origin(computation: Computation, name: str) -> Instruction | None:
    """The instruction behind copies."""
    found = computation.by_name.get(name)
    while found is not None and found.opcode in ("copy", "bitcast", "convert") and found.operands:
        found = computation.by_name.get(found.operands[0])
    return found


def _constant(instruction: Instruction | None) -> int | None:
    if instruction is None or instruction.opcode != "constant" or not re.match(r"[su]\d+\[\]", instruction.shape):
        return None
    value = re.match(r"value=(-?\d+)", instruction.attributes)
    return int(value[1]) if value else None


def _locations(text: str) -> dict[int, str]:
    """{number of a stack frame: "file.py:line"} from the tables before the computations, of the innermost frame."""

    def table(title: str) -> dict[int, str]:
        match = re.search(rf"^{title}\n((?:\d+ .*\n)*)", text, re.M)
        rows = (line.partition(" ") for line in match[1].splitlines()) if match else ()
        return {int(number): row for number, _, row in rows}

    files = {number: name.strip('"') for number, name in table("FileNames").items()}
    places = {}
    for number, row in table("FileLocations").items():
        match = re.search(r"file_name_id=(\d+).* line=(\d+)", row)
        if match and int(match[1]) in files:
            places[number] = f"{files[int(match[1])]}:{match[2]}"
    frames = {}
    for number, row in table("StackFrames").items():
        match = re.search(r"file_location_id=(\d+)", row)
        if match and int(match[1]) in places:
            frames[number] = places[int(match[1])]
    return frames
