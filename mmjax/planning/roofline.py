"""FLOPs, HBM bytes and roofline time of an instruction: max(FLOPs / peak, bytes / bandwidth).

XLA estimates no cycles for GPUs, where the roofline is the time of an instruction.
"""

from __future__ import annotations

import math
import re

from mmjax.planning.chips import Chip
from mmjax.planning.hlo import Computation, Instruction, Module

FREE = frozenset(
    {
        "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "after-all",
        "partition-id", "replica-id", "opt-barrier",
    }
)  # fmt: skip
"""Opcodes that move no data."""

TRANSFERS = ("copy-start", "slice-start", "dynamic-slice-start")
"""Opcodes that move data between HBM and VMEM while other instructions run."""


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


def hbm_bytes(module: Module, instruction: Instruction) -> int:
    """Returns the HBM bytes that an instruction reads and writes. A fusion that slices an operand reads the slice."""
    fused = module.computations.get(str(instruction.attribute("calls"))) if instruction.opcode == "fusion" else None
    total = 0
    for index, name in enumerate(instruction.operands):
        arrays = module.instructions[name].arrays if name in module.instructions else []
        num_bytes = sum(array.bytes for array in arrays if not array.on_chip)
        if fused is not None and num_bytes:
            num_bytes = min(num_bytes, _bytes_read(fused, index))
        total += num_bytes
    written = sum(array.bytes for array in instruction.arrays if not array.on_chip)
    if fused is not None and fused.root.opcode == "dynamic-update-slice":
        # In place: only the update is written.
        written = min(written, sum(array.bytes for array in fused.by_name[fused.root.operands[1]].arrays))
    return total + written


def _bytes_read(fused: Computation, index: int) -> int:
    """Returns the bytes that a fused computation reads of a parameter: its slices, or else all of it."""
    parameter = next(
        each for each in fused.instructions if each.opcode == "parameter" and each.attribute("value") == str(index)
    )
    users = [each for each in fused.instructions if parameter.name in each.operands]
    if users and all(each.opcode in ("slice", "dynamic-slice") for each in users):
        return sum(array.bytes for each in users for array in each.arrays)
    if users and all(each.opcode == "dynamic-update-slice" and each.operands[0] == parameter.name for each in users):
        return 0
    return sum(array.bytes for array in parameter.arrays)


def transfer_bytes(module: Module, start: Instruction) -> int:
    """Returns the HBM bytes of an asynchronous copy or slice, such as a prefetch to VMEM; 0 for other instructions."""
    if start.opcode not in TRANSFERS or not start.operands:
        return 0
    source = module.instructions[start.operands[0]].arrays
    # The result of copy-start is (copy, source, context), of slice-start ((operands), slice, context).
    operands = sum(len(module.instructions[name].arrays) for name in start.operands if name in module.instructions)
    moved = start.arrays[0 if start.opcode == "copy-start" else operands]
    sides = (moved, *source[:1])
    return moved.bytes * sum(not array.on_chip for array in sides)
