"""Parser for the HLO text of compiled programs: computations, instructions, execution counts, source locations.

XLA prints a module as computations of instructions; with `is_scheduled=true` the instructions are in execution order.
The text of TPU programs has no trip counts; `Module.trip_count` reads them from the condition of a loop, like `i < 24`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

ARRAY_BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16,
    "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128, "token": 0, "opaque": 0,
    "f4e2m1fn": 4, "f8e4m3": 8, "f8e4m3fn": 8, "f8e4m3b11fnuz": 8, "f8e4m3fnuz": 8, "f8e5m2": 8, "f8e5m2fnuz": 8,
    "f8e3m4": 8, "f8e8m0fnu": 8,
}  # fmt: skip
"""Bits per element, by HLO dtype."""

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
_INSTRUCTION = re.compile(r"(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array shape: dtype, dimensions and XLA layout, like `2,1,0:T(8,128)(2,1)S(1)`."""

    dtype: str
    dimensions: tuple[int, ...]
    layout: str

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dimensions))}]"

    @property
    def bytes(self) -> int:
        """Size without tile padding."""
        return math.prod(self.dimensions) * ARRAY_BITS[self.dtype] // 8

    @property
    def on_chip(self) -> bool:
        """True if the array is allocated in a TPU's vector or scalar memory instead of HBM."""
        return "S(" in self.layout

    @property
    def padded_bytes(self) -> int:
        """Size in tiled memory: a TPU pads the two minor dimensions to tiles, for example of 8 x 128."""
        order, tile = re.match(r"([\d,]*)(?::T\(([\d,]+)\))?", self.layout).groups()  # type: ignore[union-attr]
        if not tile:
            return self.bytes
        sizes = [self.dimensions[int(dim)] for dim in order.split(",") if dim]
        for axis, tile_size in enumerate(reversed([int(size) for size in tile.split(",")])):
            if axis < len(sizes):
                sizes[axis] = -(-sizes[axis] // tile_size) * tile_size
            else:
                sizes.append(tile_size)
        return math.prod(sizes) * ARRAY_BITS[self.dtype] // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An HLO instruction: one line of a computation.

    Attributes:
      name: name without "%".
      shape: text of the result shape.
      opcode: operation, like "fusion".
      operands: names of the operands.
      attributes: text after the operands.
      root: True if it is the root, the result of the computation.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @functools.cached_property
    def arrays(self) -> list[Array]:
        """Arrays of the result, with tuples flattened."""
        return [
            Array(dtype, tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size), layout or "")
            for dtype, sizes, layout in _ARRAY.findall(re.sub(r"/\*.*?\*/", "", self.shape))
        ]

    def attribute(self, name: str) -> str | None:
        """Returns the identifier or number after `name=`, without "%"; None if the attribute is missing."""
        match = re.search(rf"(?:^|[ ,]){name}=%?([\w.\-]+)", self.attributes)
        return match[1] if match else None

    @property
    def cycles(self) -> int:
        """The compiler's `estimated_cycles` of one execution; 0 if there is no estimate."""
        match = re.search(r'"estimated_cycles":"?(\d+)', self.attributes)
        return int(match[1]) if match else 0

    @property
    def op_name(self) -> str:
        """JAX name stack of the operation, like "jit(step)/jvp()/dot_general"; "" if unknown."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""


@dataclasses.dataclass(frozen=True)
class Computation:
    """An HLO computation: a name and its instructions, in execution order if the module is scheduled."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        """Instructions by name."""
        return {instruction.name: instruction for instruction in self.instructions}

    @property
    def root(self) -> Instruction:
        """The result of the computation."""
        return next(instruction for instruction in self.instructions if instruction.root)


class Module:
    """A compiled HLO module.

    Args:
      text: result of `compiled.as_text()`.

    Attributes:
      computations: computations by name.
      entry: the ENTRY computation.
      instructions: instructions of all computations, by name.
      locations: {stack frame id: "file.py:line"}.

    Raises:
      ValueError: if the text has no ENTRY computation.
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
                # The attributes of a kernel may span several lines.
                lines[-1] += line
        if entry is None:
            raise ValueError("not a compiled HLO module: no ENTRY computation")
        self.entry = self.computations[entry]
        self.instructions = {
            each.name: each for computation in self.computations.values() for each in computation.instructions
        }

    def called_computations(self, instruction: Instruction) -> list[Computation]:
        """Returns the callee of a call or async start, or the branches of a conditional; [] for loops and fusions."""
        if instruction.opcode == "call":
            names = [instruction.attribute("to_apply")]
        elif instruction.opcode == "async-start":
            names = [instruction.attribute("calls")]
        elif instruction.opcode == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
            names = [name.strip().lstrip("%") for name in branches[1].split(",")] if branches else []
            names += [instruction.attribute("true_computation"), instruction.attribute("false_computation")]
        else:
            names = []
        return [self.computations[name] for name in names if name in self.computations]

    def walk(self, instruction: Instruction) -> Iterator[Instruction]:
        """Yields the instruction and, recursively, the instructions of its fusion or async computation."""
        yield instruction
        # Collectives that run on a TPU's SparseCores are asynchronous calls, `call-start`.
        name = instruction.attribute("to_apply" if instruction.opcode == "call-start" else "calls")
        if name in self.computations:
            for inner in self.computations[name].instructions:
                yield from self.walk(inner)

    def trip_count(self, loop: Instruction) -> int:
        """Returns the trip count of a counted `while` loop.

        Raises:
          ValueError: if the trip count depends on data.
        """
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        condition = self.computations[str(loop.attribute("condition"))]
        root = condition.root
        if root.opcode == "fusion":
            # On a CPU, the comparison is wrapped in a fusion.
            condition = self.computations[str(root.attribute("calls"))]
            root = condition.root
        constants = [_constant(condition.by_name.get(name)) for name in root.operands]
        limits = [value for value in constants if value is not None]
        if not limits:
            outer = self.computations[str(loop.attribute("condition"))]
            limits = [value for each in outer.instructions if (value := _constant(each)) is not None]
        if root.opcode != "compare" or len(limits) != 1 or root.attribute("direction") not in ("LT", "GT", "LE", "GE"):
            raise ValueError(f"the trip count of loop {loop.name} depends on data")
        start, step = self._counter(loop)
        limit = limits[0] + (root.attribute("direction") == "LE")
        return max(0, -(-(limit - start) // step))

    def _counter(self, loop: Instruction) -> tuple[int, int]:
        """Returns (start, step) of a loop counter; (0, 1), as in JAX's counted loops, if they cannot be parsed."""
        condition = self.computations[str(loop.attribute("condition"))]
        body = self.computations[str(loop.attribute("body"))]
        indices = [each.attribute("index") for each in condition.instructions if each.opcode == "get-tuple-element"]
        caller = next(computation for computation in self.computations.values() if loop.name in computation.by_name)
        init = caller.by_name.get(loop.operands[0])
        if len(indices) != 1 or body.root.opcode != "tuple" or init is None or init.opcode != "tuple":
            return 0, 1
        index = int(str(indices[0]))
        start = _constant(_origin(caller, init.operands[index]))
        update = _origin(body, body.root.operands[index])
        addends = update.operands if update and update.opcode == "add" else ()
        step = next((value for name in addends if (value := _constant(_origin(body, name)))), 1)
        return start or 0, step

    def location(self, instruction: Instruction) -> str:
        """Returns the source location "file.py:line" of the instruction or of one in its fusion; "" if unknown."""
        for inner in self.walk(instruction):
            frame = inner.attribute("stack_frame_id")
            if frame and int(frame) in self.locations:
                return self.locations[int(frame)]
            match = re.search(r'source_file="([^"]*)" source_line=(\d+)', inner.attributes)
            if match:
                return f"{match[1]}:{match[2]}"
        return ""


def _parse(line: str) -> Instruction:
    """Parses one line, like `ROOT %sum = f32[] add(%a, %b), attributes`."""
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
    """Returns the index of the bracket that closes the first opening bracket."""
    depth = 0
    for index, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return index
    return len(text)


def _origin(computation: Computation, name: str) -> Instruction | None:
    """Returns the instruction that computes the named value, looking through copies, bitcasts and converts."""
    source = computation.by_name.get(name)
    while source is not None and source.opcode in ("copy", "bitcast", "convert") and source.operands:
        source = computation.by_name.get(source.operands[0])
    return source


def _constant(instruction: Instruction | None) -> int | None:
    """Returns the value of a scalar integer constant, else None."""
    if instruction is None or instruction.opcode != "constant" or not re.match(r"[su]\d+\[\]", instruction.shape):
        return None
    value = re.match(r"value=(-?\d+)", instruction.attributes)
    return int(value[1]) if value else None


def _locations(text: str) -> dict[int, str]:
    """Parses {stack frame id: "file.py:line" of its innermost frame} from the tables before the computations."""

    def table(title: str) -> dict[int, str]:
        match = re.search(rf"^{title}\n((?:\d+ .*\n)*)", text, re.M)
        rows = (line.partition(" ") for line in match[1].splitlines()) if match else ()
        return {int(key): row for key, _, row in rows}

    files = {key: name.strip('"') for key, name in table("FileNames").items()}
    lines = {}
    for key, row in table("FileLocations").items():
        match = re.search(r"file_name_id=(\d+).* line=(\d+)", row)
        if match and int(match[1]) in files:
            lines[key] = f"{files[int(match[1])]}:{match[2]}"
    frames = {}
    for key, row in table("StackFrames").items():
        match = re.search(r"file_location_id=(\d+)", row)
        if match and int(match[1]) in lines:
            frames[key] = lines[int(match[1])]
    return frames
