"""Peak memory of a compiled step: simulates the allocation and release of buffers along the schedule."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

from mmjax.planning.hlo import Array, Computation, Instruction, Module

BufferId = int | None
"""Index of a buffer; None for an array that is not in main memory or belongs to the caller."""

NEW = -1
"""Placeholder id of a buffer that the instruction has to allocate."""


@dataclasses.dataclass(frozen=True)
class Buffer:
    """One allocation.

    Attributes:
      bytes: size with tile padding.
      shape: dtype and dimensions.
      operation: JAX name stack of the instruction that writes it.
      location: "file.py:line".
      what: "activation" if the forward pass writes it for the backward pass, else "temporary".
    """

    bytes: int
    shape: str
    operation: str
    location: str
    what: str


@dataclasses.dataclass(frozen=True)
class MemoryUse:
    """Peak memory of one device, in bytes.

    Attributes:
      parameters, optimizer, batch, other: arguments of the step, by kind.
      activations: values that the forward pass keeps for the backward pass, at the peak.
      temporaries: all other allocations of the compiler.
      code: the program itself.
      peak: total.
      capacity: memory that the device provides.
      largest: the largest buffers at the peak, in descending order.
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
        """True if the peak is within the capacity."""
        return self.peak <= self.capacity


def read_memory(module: Module, analysis: Any, capacity: int) -> MemoryUse:
    """Computes the memory use of a compiled step.

    The compiler's analysis gives the totals; the simulation only divides the temporaries into kinds.

    Args:
      module: the compiled step.
      analysis: result of `compiled.memory_analysis()`.
      capacity: memory of the device in bytes.
    """
    arguments = {"parameters": 0, "optimizer": 0, "batch": 0, "other": 0}
    for instruction in module.entry.instructions:
        if instruction.opcode == "parameter":
            arguments[_argument_kind(instruction.op_name)] += sum(array.padded_bytes for array in instruction.arrays)
    # Add padding and alignment, which the HLO text does not show.
    arguments["other"] += analysis.argument_size_in_bytes - sum(arguments.values())
    live = live_at_peak(module)
    # Donated arguments hold aliased outputs.
    new_outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    # `temp_size` may exceed the peak, even the capacity: it sums temporaries that are not live at the same time. Newer
    # compilers include vector memory in `peak_memory`, so take the smaller of the two.
    total = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + new_outputs
    total = min(total, getattr(analysis, "peak_memory_in_bytes", 0) or total)
    temporaries = max(0, total - analysis.argument_size_in_bytes)
    activations = min(temporaries, sum(buffer.bytes for buffer in live if buffer.what == "activation"))
    code = analysis.generated_code_size_in_bytes
    return MemoryUse(
        **arguments,
        activations=activations,
        temporaries=temporaries - activations,
        code=code,
        peak=analysis.argument_size_in_bytes + temporaries + code,
        capacity=capacity,
        largest=tuple(sorted(live, key=lambda buffer: -buffer.bytes)[:10]),
    )


def _argument_kind(name: str) -> str:
    if re.match(r"state\.(parameters|ema)", name):
        return "parameters"
    if name.startswith("state.optimizer"):
        return "optimizer"
    return "batch" if name.startswith("batch") else "other"


def live_at_peak(module: Module) -> list[Buffer]:
    """Returns the buffers that are live at the peak, without the arguments of the program."""
    return _HeapSimulator(module).peak(module.entry)[1]


class _HeapSimulator:
    """Assigns buffers to instructions like XLA: results of in-place updates share the buffer of their operand."""

    def __init__(self, module: Module):
        self.module = module

    def peak(self, computation: Computation) -> tuple[int, list[Buffer]]:
        """Returns (bytes, live buffers) at the peak of a computation, without the caller's buffers.

        The caller's buffers are the parameters, and results that alias them.
        """
        buffer_ids: dict[str, list[BufferId]] = {}
        activation_sources: dict[int, Instruction] = {}
        buffers: list[tuple[Array, Instruction]] = []
        first_use: list[int] = []
        last_use: list[int] = []
        nested: list[tuple[int, list[Buffer]]] = []
        for step, instruction in enumerate(computation.instructions):
            ids = self.assign(computation, instruction, buffer_ids)
            for index, (buffer_id, array) in enumerate(zip(ids, instruction.arrays, strict=False)):
                if buffer_id != NEW:
                    continue
                if array.on_chip or not array.bytes or computation is not self.module.entry and instruction.root:
                    ids[index] = None
                    continue
                ids[index] = len(buffers)
                buffers.append((array, instruction))
                first_use.append(step)
                last_use.append(step)
            buffer_ids[instruction.name] = ids
            activation_sources |= self.activation_sources(instruction, ids)
            for name in (*instruction.operands, instruction.name):
                for buffer_id in buffer_ids.get(name, ()):
                    if buffer_id is not None:
                        last_use[buffer_id] = step
            nested.append(self.nested_peak(instruction))
        # The results of the program alias donated arguments.
        returned = {buffer_id for buffer_id in buffer_ids[computation.root.name] if buffer_id is not None}
        deltas = [0] * (len(computation.instructions) + 1)
        for index, (array, _) in enumerate(buffers):
            if index not in returned:
                deltas[first_use[index]] += array.padded_bytes
                deltas[last_use[index] + 1] -= array.padded_bytes
        peak, peak_step, live_bytes = 0, 0, 0
        for step, (nested_bytes, _) in enumerate(nested):
            live_bytes += deltas[step]
            if live_bytes + nested_bytes > peak:
                peak, peak_step = live_bytes + nested_bytes, step
        live = [
            self.describe(array, activation_sources.get(index, instruction), index in activation_sources)
            for index, (array, instruction) in enumerate(buffers)
            if index not in returned and first_use[index] <= peak_step <= last_use[index]
        ]
        return peak, live + (nested[peak_step][1] if nested else [])

    def nested_peak(self, instruction: Instruction) -> tuple[int, list[Buffer]]:
        """Returns the peak inside a loop body, call or branch, without the operands and results of `instruction`."""
        if instruction.opcode == "while":
            return self.peak(self.module.computations[str(instruction.attribute("body"))])
        peaks = [self.peak(computation) for computation in self.module.called_computations(instruction)]
        return max(peaks, key=lambda peak: peak[0], default=(0, []))

    def assign(
        self, computation: Computation, instruction: Instruction, buffer_ids: dict[str, list[BufferId]]
    ) -> list[BufferId]:
        """Returns the buffer id of each result array, `NEW` for arrays that need an allocation."""
        opcode = instruction.opcode
        new: list[BufferId] = [NEW] * len(instruction.arrays)
        operands = [buffer_ids.get(name, []) for name in instruction.operands]
        flat = [buffer_id for operand in operands for buffer_id in operand]
        if opcode in ("parameter", "constant"):
            return [None] * len(instruction.arrays)
        if opcode == "tuple":
            return flat
        if opcode == "get-tuple-element":
            source = computation.by_name[instruction.operands[0]]
            begin, end = _element_range(source.shape, int(str(instruction.attribute("index"))))
            return operands[0][begin:end]
        if opcode in ("bitcast", "while", "opt-barrier", "optimization-barrier", "dynamic-update-slice", "scatter"):
            return (flat + [None] * len(new))[: len(new)]
        if opcode.endswith("-start") and opcode != "all-reduce-start":
            # The result of copy-start is (copy, source, context); that of other starts is (*operands, *results).
            return new[:1] + flat + new[2:] if opcode == "copy-start" else flat + new[len(flat) :]
        if opcode.endswith("-done"):
            start = computation.by_name[instruction.operands[0]]
            skipped = 0
            if start.opcode not in ("copy-start", "all-reduce-start"):
                skipped = sum(len(buffer_ids.get(name, [])) for name in start.operands)
            return (operands[0][skipped:] + [None] * len(new))[: len(new)]
        if opcode in ("custom-call", "fusion"):
            return self.in_place(instruction, operands) or new
        return new

    def in_place(self, instruction: Instruction, operands: list[list[BufferId]]) -> list[BufferId] | None:
        """Returns the buffer of the operand that a dynamic-update-slice fusion writes to; None for other fusions."""
        name = instruction.attribute("calls")
        if name in self.module.computations and len(instruction.arrays) == 1:
            fused = self.module.computations[name]
            root = fused.root
            while root.opcode in ("bitcast", "convert", "copy") and root.operands:
                root = fused.by_name[root.operands[0]]
            if root.opcode == "dynamic-update-slice":
                target = fused.by_name[root.operands[0]]
                while target.opcode == "bitcast" and target.operands:
                    target = fused.by_name[target.operands[0]]
                parameter = re.match(r"value=(\d+)", target.attributes)
                if target.opcode == "parameter" and parameter:
                    return operands[int(parameter[1])][:1] or [None]
        return None

    def activation_sources(self, loop: Instruction, ids: list[BufferId]) -> dict[int, Instruction]:
        """Returns {id of a buffer that a forward-pass loop fills: the instruction in its body that fills it}."""
        if loop.opcode != "while" or not _is_forward(loop.op_name):
            return {}
        body = self.module.computations[str(loop.attribute("body"))]
        if body.root.opcode != "tuple" or len(body.root.operands) != len(ids):
            return {}
        sources = {}
        for index, (buffer_id, name) in enumerate(zip(ids, body.root.operands, strict=True)):
            source = body.by_name[name]
            unchanged = source.opcode == "get-tuple-element" and source.attribute("index") == str(index)
            if buffer_id is not None and not unchanged:
                sources[buffer_id] = source
        return sources

    def describe(self, array: Array, instruction: Instruction, is_activation: bool) -> Buffer:
        name = next((each.op_name for each in self.module.walk(instruction) if each.op_name), "")
        shape = f"{array.dtype}[{','.join(map(str, array.dimensions))}]"
        what = "activation" if is_activation or _is_forward(name) else "temporary"
        return Buffer(array.padded_bytes, shape, name, self.module.location(instruction), what)


def _is_forward(name: str) -> bool:
    """Returns True for an op name in the forward pass of a differentiated function."""
    return "jvp(" in name and "transpose(" not in name


def _element_range(shape: str, index: int) -> tuple[int, int]:
    """Returns the range [begin, end) of element `index` among the flattened arrays of a tuple shape."""
    counts = _element_counts(shape)
    return sum(counts[:index]), sum(counts[: index + 1])


@functools.lru_cache
def _element_counts(shape: str) -> list[int]:
    """Returns the number of arrays in each element of a tuple shape."""
    shape = re.sub(r"/\*.*?\*/", "", shape)
    parts: list[str] = []
    depth, begin = 0, 1
    for index, letter in enumerate(shape):
        if letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        if letter == "," and depth == 1 or depth == 0 and index:
            parts.append(shape[begin:index])
            begin = index + 1
            if depth == 0:
                break
    return [len(re.findall(r"[a-z]\w*\[[\d,<=]*\]", part)) for part in parts]
