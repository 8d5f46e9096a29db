"""What lies in a chip's memory when most does: a walk through the schedule that places each buffer and frees it."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

from mmjax.planning.hlo import Array, Computation, Instruction, Module

Leaf = int | None
"""A buffer's number, or None for what is not in main memory or belongs to the caller."""

OWN = -1
"""Instead of a number: a buffer that is yet to be made."""


@dataclasses.dataclass(frozen=True)
class Buffer:
    """One allocation.

    Attributes:
      bytes: with the padding of its tiles.
      shape: dtype and dimensions.
      operation: the name that JAX gave what makes it.
      location: "file.py:line".
      what: "activation", of the forward pass and kept for the backward pass; "temporary" for all else.
    """

    bytes: int
    shape: str
    operation: str
    location: str
    what: str


@dataclasses.dataclass(frozen=True)
class MemoryUse:
    """Bytes of one chip.

    Attributes:
      parameters, optimizer, batch, other: arguments of the step, by what they are.
      activations: what the forward pass keeps for the backward pass, at the moment of the peak.
      temporaries: everything else that the compiler allocates.
      code: of the program itself.
      peak: all together.
      capacity: of the chip.
      largest: the largest buffers at that moment, the largest first.
    """

    parameters: int
    optimizer: int
    batch: int
    other: int
    activations: int
    temporaries: int
    code: int
    peak: int
    capacity: int
    largest: tuple[Buffer, ...]

    @property
    def fits(self) -> bool:
        return self.peak <= self.capacity


def read_memory(module: Module, analysis: Any, capacity: int) -> MemoryUse:
    """Memory of a compiled step.

    Args:
      module: its text.
      analysis: of `compiled.memory_analysis()`, which has the sizes; the walk says what they are made of.
    """
    arguments = {"parameters": 0, "optimizer": 0, "batch": 0, "other": 0}
    for instruction in module.entry.instructions:
        if instruction.opcode == "parameter":
            arguments[_argument(instruction.operation)] += sum(array.padded_bytes for array in instruction.arrays)
    # Padding and small alignments that the text does not show.
    arguments["other"] += analysis.argument_size_in_bytes - sum(arguments.values())
    live = live_at_peak(module)
    # Outputs that take the place of arguments are none of their own.
    own = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    # What lives at once; the temporaries' own sum may be more than the compiler ever needs, and than there is. Newer
    # compilers count the vector memory into the peak, so that the sum may be the smaller one.
    together = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + own
    together = min(together, getattr(analysis, "peak_memory_in_bytes", 0) or together)
    temporary = max(0, together - analysis.argument_size_in_bytes)
    kept = min(temporary, sum(buffer.bytes for buffer in live if buffer.what == "activation"))
    code = analysis.generated_code_size_in_bytes
    return MemoryUse(
        **arguments,
        activations=kept,
        temporaries=temporary - kept,
        code=code,
        peak=analysis.argument_size_in_bytes + temporary + code,
        capacity=capacity,
        largest=tuple(sorted(live, key=lambda buffer: -buffer.bytes)[:10]),
    )


def _argument(name: str) -> str:
    if re.match(r"state\.(parameters|average)", name):
        return "parameters"
    if name.startswith("state.optimizer"):
        return "optimizer"
    return "batch" if name.startswith("batch") else "other"


def live_at_peak(module: Module) -> list[Buffer]:
    """The buffers beside the program's arguments that live when they take most."""
    return _Heap(module).peak(module.entry)[1]


class _Heap:
    """Places buffers as XLA does where it can: in the place of an operand for what is written in place."""

    def __init__(self, module: Module):
        self.module = module

    def peak(self, computation: Computation) -> tuple[int, list[Buffer]]:
        """(bytes, buffers) at the peak, without what belongs to the caller: parameters, and results in their place."""
        values: dict[str, list[Leaf]] = {}
        kept: dict[int, Instruction] = {}
        buffers: list[tuple[Array, Instruction]] = []
        last: list[int] = []
        first: list[int] = []
        inner: list[tuple[int, list[Buffer]]] = []
        for place, instruction in enumerate(computation.instructions):
            leaves = self.leaves(computation, instruction, values)
            for number, (leaf, array) in enumerate(zip(leaves, instruction.arrays, strict=False)):
                if leaf != OWN:
                    continue
                if array.on_chip or not array.bytes or computation is not self.module.entry and instruction.root:
                    leaves[number] = None
                    continue
                leaves[number] = len(buffers)
                buffers.append((array, instruction))
                first.append(place)
                last.append(place)
            values[instruction.name] = leaves
            kept |= self.kept(instruction, leaves)
            for name in (*instruction.operands, instruction.name):
                for leaf in values.get(name, ()):
                    if leaf is not None:
                        last[leaf] = place
            inner.append(self.inside(instruction))
        # What the program gives back stands in the place of arguments, which it was given.
        given = {leaf for leaf in values[computation.root.name] if leaf is not None}
        best, when, total = 0, 0, 0
        frees: dict[int, int] = {}
        for number, (array, _) in enumerate(buffers):
            if number not in given:
                frees[last[number] + 1] = frees.get(last[number] + 1, 0) + array.padded_bytes
        allocations: dict[int, int] = {}
        for number, (array, _) in enumerate(buffers):
            if number not in given:
                allocations[first[number]] = allocations.get(first[number], 0) + array.padded_bytes
        for place in range(len(computation.instructions)):
            total += allocations.get(place, 0) - frees.get(place, 0)
            if total + inner[place][0] > best:
                best, when = total + inner[place][0], place
        live = [
            self.buffer(array, kept.get(number, instruction), number in kept)
            for number, (array, instruction) in enumerate(buffers)
            if number not in given and first[number] <= when <= last[number]
        ]
        return best, live + (inner[when][1] if inner else [])

    def inside(self, instruction: Instruction) -> tuple[int, list[Buffer]]:
        """The peak of what an instruction runs, its operands and results aside."""
        if instruction.opcode == "while":
            return self.peak(self.module.computations[str(instruction.attribute("body"))])
        called = [self.peak(computation) for computation in self.module.called(instruction)]
        return max(called, key=lambda found: found[0], default=(0, []))

    def leaves(self, computation: Computation, instruction: Instruction, values: dict[str, list[Leaf]]) -> list[Leaf]:
        """For each array of an instruction the buffer that it stands in, `OWN` where it makes one."""
        opcode = instruction.opcode
        own: list[Leaf] = [OWN] * len(instruction.arrays)
        operands = [values.get(name, []) for name in instruction.operands]
        if opcode in ("parameter", "constant"):
            return [None] * len(instruction.arrays)
        if opcode == "tuple":
            return [leaf for operand in operands for leaf in operand]
        if opcode == "get-tuple-element":
            source = computation.by_name[instruction.operands[0]]
            begin, end = _element(source.shape, int(str(instruction.attribute("index"))))
            return operands[0][begin:end]
        if opcode in ("bitcast", "while", "opt-barrier", "optimization-barrier", "dynamic-update-slice", "scatter"):
            count = len(instruction.arrays)
            found = [leaf for operand in operands for leaf in operand][:count]
            return found + [None] * (count - len(found))
        if opcode.endswith("-start") and opcode != "all-reduce-start":
            given = [leaf for operand in operands for leaf in operand]
            # (copy, what is copied, context); the others have what they are given first, and then the result.
            return own[:1] + given + own[2:] if opcode == "copy-start" else given + own[len(given) :]
        if opcode.endswith("-done"):
            start = computation.by_name[instruction.operands[0]]
            skipped = 0
            if start.opcode not in ("copy-start", "all-reduce-start"):
                skipped = sum(len(values.get(name, [])) for name in start.operands)
            return (operands[0][skipped:] + [None] * len(own))[: len(own)]
        if opcode in ("custom-call", "fusion"):
            return self.in_place(instruction, operands) or own
        return own

    def in_place(self, instruction: Instruction, operands: list[list[Leaf]]) -> list[Leaf] | None:
        """A fusion that updates a slice of an operand writes into the operand."""
        root = None
        name = instruction.attribute("calls")
        if name in self.module.computations and len(instruction.arrays) == 1:
            inner = self.module.computations[name]
            root = inner.root
            while root.opcode in ("bitcast", "convert", "copy") and root.operands:
                root = inner.by_name[root.operands[0]]
            if root.opcode == "dynamic-update-slice":
                target = inner.by_name[root.operands[0]]
                while target.opcode in ("bitcast",) and target.operands:
                    target = inner.by_name[target.operands[0]]
                number = re.match(r"value=(\d+)", target.attributes)
                if target.opcode == "parameter" and number:
                    return operands[int(number[1])][:1] or [None]
        return None

    def kept(self, loop: Instruction, leaves: list[Leaf]) -> dict[int, Instruction]:
        """{buffer that a loop of the forward pass fills: what fills it}."""
        if loop.opcode != "while" or not _forward(loop.operation):
            return {}
        body = self.module.computations[str(loop.attribute("body"))]
        if body.root.opcode != "tuple" or len(body.root.operands) != len(leaves):
            return {}
        found = {}
        for place, (leaf, name) in enumerate(zip(leaves, body.root.operands, strict=True)):
            source = body.by_name[name]
            same = source.opcode == "get-tuple-element" and source.attribute("index") == str(place)
            if leaf is not None and not same:
                found[leaf] = source
        return found

    def buffer(self, array: Array, instruction: Instruction, kept: bool) -> Buffer:
        name = next((each.operation for each in self.module.inside(instruction) if each.operation), "")
        shape = f"{array.dtype}[{','.join(map(str, array.dimensions))}]"
        what = "activation" if kept or _forward(name) else "temporary"
        return Buffer(array.padded_bytes, shape, name, self.module.location(instruction), what)


def _forward(name: str) -> bool:
    """Whether a name that JAX gave belongs to the forward pass of something that is differentiated."""
    return "jvp(" in name and "transpose(" not in name


def _element(shape: str, index: int) -> tuple[int, int]:
    """Which arrays of a tuple's shape belong to its element `index`: from, to."""
    counts = _counts(shape)
    return sum(counts[:index]), sum(counts[: index + 1])


@functools.lru_cache
def _counts(shape: str) -> list[int]:
    """How many arrays each element of a tuple's shape has."""
    shape = re.sub(r"/\*.*?\*/", "", shape)
    parts: list[str] = []
    depth, begin = 0, 1
    for place, letter in enumerate(shape):
        if letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        if letter == "," and depth == 1 or depth == 0 and place:
            parts.append(shape[begin:place])
            begin = place + 1
            if depth == 0:
                break
    return [len(re.findall(r"[a-z]\w*\[[\d,<=]*\]", part)) for part in parts]
