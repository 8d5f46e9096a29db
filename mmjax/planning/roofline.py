"""Seconds of an instruction where the compiler gives no cycles, as on GPUs: max(FLOPs / peak, bytes / bandwidth)."""

from __future__ import annotations

import math
import re

from mmjax.planning.chips import Chip
from mmjax.planning.hlo import Instruction, Module

FREE = frozenset(
    {
        "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "after-all",
        "partition-id", "replica-id", "opt-barrier",
    }
)  # fmt: skip
"""What moves no data itself."""


def product_flops(module: Module, instruction: Instruction) -> int:
    """FLOPs of the matrix products in an instruction, at any depth, the calls of cuBLAS among them."""
    return sum(_flops(module, inner) for inner in module.inside(instruction))


def _flops(module: Module, instruction: Instruction) -> int:
    if instruction.opcode == "dot":
        found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    elif instruction.opcode == "custom-call" and "__cublas" in instruction.attributes:
        found = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes)
    else:
        return 0
    left = module.instructions.get(instruction.operands[0]) if instruction.operands else None
    if found is None or left is None or not left.arrays:
        return 0
    contracted = [int(axis) for axis in re.findall(r"\d+", found[1])]
    result = math.prod(instruction.arrays[0].dimensions)
    return 2 * result * math.prod(left.arrays[0].dimensions[axis] for axis in contracted)


def roofline_seconds(module: Module, instruction: Instruction, chip: Chip) -> float:
    """Of one run of an instruction of the program's steps."""
    if instruction.opcode in FREE or instruction.opcode.endswith(("-start", "-done")):
        return 0.0
    operands = [module.instructions[name] for name in instruction.operands if name in module.instructions]
    moved = sum(array.bytes for each in (*operands, instruction) for array in each.arrays)
    return max(product_flops(module, instruction) / chip.peak_flops, moved / chip.memory_bandwidth)
