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
    """FLOPs of the matrix products in an instruction, at any depth, also of those in cuBLAS and cuDNN's attention."""
    return sum(_flops(module, inner) for inner in module.inside(instruction))


def _flops(module: Module, instruction: Instruction) -> int:
    if "__cudnn$fmha" in instruction.attributes:
        return _attention_flops(module, instruction)
    if instruction.opcode == "dot":
        found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    elif instruction.opcode == "custom-call" and "__cublas" in instruction.attributes:
        found = re.search(r'"lhs_contracting_dimensions": ?\[([^\]]*)\]', instruction.attributes)
    else:
        return 0
    left = module.instructions.get(instruction.operands[0]) if instruction.operands else None
    if found is None or left is None or not left.arrays:
        return 0
    contracted = [int(axis) for axis in re.findall(r"\d+", found[1])]
    result = math.prod(instruction.arrays[0].dimensions)
    return 2 * result * math.prod(left.arrays[0].dimensions[axis] for axis in contracted)


def _attention_flops(module: Module, instruction: Instruction) -> int:
    """Two products forward; backward five, as the weights are computed again (Dao et al., FlashAttention, 2022)."""
    weights = re.search(r'"intermediate_tensor_shape":.*?"dimensions": ?\[([^\]]*)\]', instruction.attributes)
    query = module.instructions.get(instruction.operands[0])
    if weights is None or query is None:
        return 0
    products = 5 if "Backward" in instruction.attributes else 2
    pairs = math.prod(int(size) for size in re.findall(r"\d+", weights[1]))
    return products * 2 * pairs * query.arrays[0].dimensions[-1]


def roofline_seconds(module: Module, instruction: Instruction, chip: Chip) -> float:
    """Of one run of an instruction of the program's steps."""
    if instruction.opcode in FREE or instruction.opcode.endswith(("-start", "-done")):
        return 0.0
    operands = [module.instructions[name] for name in instruction.operands if name in module.instructions]
    moved = sum(array.bytes for each in (*operands, instruction) for array in each.arrays)
    return max(product_flops(module, instruction) / chip.peak_flops, moved / chip.memory_bandwidth)
