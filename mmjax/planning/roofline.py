"""Roofline time of an instruction, max(FLOPs / peak, bytes / bandwidth), for GPUs: XLA estimates no cycles there."""

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
"""Opcodes that move no data."""


def instruction_flops(module: Module, instruction: Instruction) -> int:
    """Returns the FLOPs of all matmuls in an instruction and its fusion, including cuBLAS and cuDNN attention calls."""
    return sum(_flops(module, nested) for nested in module.walk(instruction))


def _flops(module: Module, instruction: Instruction) -> int:
    if "__cudnn$fmha" in instruction.attributes:
        return _attention_flops(module, instruction)
    if instruction.opcode == "dot":
        dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    elif instruction.opcode == "custom-call" and "__cublas" in instruction.attributes:
        dims = re.search(r'"lhs_contracting_dimensions": ?\[([^\]]*)\]', instruction.attributes)
    else:
        return 0
    left = module.instructions.get(instruction.operands[0]) if instruction.operands else None
    if dims is None or left is None or not left.arrays:
        return 0
    contracted = [int(axis) for axis in re.findall(r"\d+", dims[1])]
    result = math.prod(instruction.arrays[0].dimensions)
    return 2 * result * math.prod(left.arrays[0].dimensions[axis] for axis in contracted)


def _attention_flops(module: Module, instruction: Instruction) -> int:
    """FLOPs of two matmuls in the forward pass, five in the backward (Dao et al., FlashAttention, 2022)."""
    logits = re.search(r'"intermediate_tensor_shape":.*?"dimensions": ?\[([^\]]*)\]', instruction.attributes)
    query = module.instructions.get(instruction.operands[0])
    if logits is None or query is None:
        return 0
    matmuls = 5 if "Backward" in instruction.attributes else 2
    num_logits = math.prod(int(size) for size in re.findall(r"\d+", logits[1]))
    return matmuls * 2 * num_logits * query.arrays[0].dimensions[-1]


def roofline_seconds(module: Module, instruction: Instruction, chip: Chip) -> float:
    """Returns the roofline time of one execution of an instruction, in seconds; 0 if it moves no data."""
    if instruction.opcode in FREE or instruction.opcode.endswith(("-start", "-done")):
        return 0.0
    operands = [module.instructions[name] for name in instruction.operands if name in module.instructions]
    num_bytes = sum(array.bytes for value in (*operands, instruction) for array in value.arrays)
    return max(instruction_flops(module, instruction) / chip.peak_flops, num_bytes / chip.memory_bandwidth)
