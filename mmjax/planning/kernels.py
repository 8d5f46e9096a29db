"""Pallas kernels of a traced step: identity, FLOPs and cost of one call on one device."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jax.extend.core import Jaxpr

from mmjax.planning.chips import Chip
from mmjax.planning.flops import kernel_call_flops, nested_jaxprs
from mmjax.planning.hlo import Array, Instruction

_HLO_TYPES = {"bool": "s32", "bfloat16": "bf16"}
"""HLO dtypes that do not follow from kind and size. Pallas passes booleans to a kernel as 32-bit integers."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A Pallas kernel with the shapes of one call.

    Attributes:
      name: name of the kernel, which is part of the `op_name` of its custom calls.
      operands, results: HLO types, like "bf16[32,256,1024]".
      fingerprint: hash of the kernel's jaxpr and grid, which changes with its code.
      flops: FLOPs of one call, including tile padding.
      trips: grid size, then the trip counts of the nested loops, outermost first; () if unknown.
      equation: the `pallas_call` equation.
    """

    name: str
    operands: tuple[str, ...]
    results: tuple[str, ...]
    fingerprint: str
    flops: int = dataclasses.field(compare=False)
    trips: tuple[int, ...] = dataclasses.field(compare=False)
    equation: Any = dataclasses.field(compare=False, repr=False, default=None)

    @property
    def key(self) -> str:
        """Key in the table of compiled kernels."""
        return f"{self.name}({', '.join(self.operands)}) -> {', '.join(self.results)} #{self.fingerprint}"


def count_kernel_calls(jaxpr: Any) -> dict[Kernel, int]:
    """Returns {kernel: calls in one execution of the jaxpr on one device}; a loop of unknown length counts once."""
    calls: dict[Kernel, int] = {}
    for equation, times in _pallas_calls(jaxpr, 1):
        kernel = _kernel(equation)
        calls[kernel] = calls.get(kernel, 0) + times
    return calls


def _pallas_calls(jaxpr: Jaxpr, times: int) -> Iterator[tuple[Any, int]]:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            if not equation.params.get("interpret"):
                yield equation, times
            continue
        length = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner in nested_jaxprs(equation.params):
            yield from _pallas_calls(inner, times * length)


def _kernel(equation: Any) -> Kernel:
    params = equation.params
    info = params.get("name_and_src_info", params.get("name"))
    # Remove object addresses and the step's mesh, which are not part of the code.
    code = re.sub(r"0x[0-9a-f]+|ctx_mesh=.*", "", f"{params['jaxpr']}\n{params['grid_mapping']}")
    return Kernel(
        name=getattr(info, "name", str(info)),
        operands=tuple(_hlo_type(variable.aval) for variable in equation.invars),
        results=tuple(_hlo_type(variable.aval) for variable in equation.outvars),
        fingerprint=hashlib.sha256(code.encode()).hexdigest()[:12],
        flops=kernel_call_flops(equation),
        trips=_trips(params),
        equation=equation,
    )


def _hlo_type(aval: Any) -> str:
    kind = {"i": "s", "u": "u", "f": "f"}.get(aval.dtype.kind, "")
    name = _HLO_TYPES.get(str(aval.dtype)) or (f"{kind}{8 * aval.dtype.itemsize}" if kind else str(aval.dtype))
    return f"{name}[{','.join(map(str, aval.shape))}]"


def _trips(params: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the grid size and the lengths of the nested loops in the kernel, outermost first.

    Returns () if a size or length is unknown, or a body has more than one loop.
    """
    sizes = params["grid_mapping"].grid
    if not all(isinstance(size, int) for size in sizes):
        return ()
    trips, jaxpr = [math.prod(sizes)], params["jaxpr"]
    while True:
        loops = [equation for equation in jaxpr.eqns if equation.primitive.name in ("scan", "while")]
        if not loops:
            return tuple(trips)
        if len(loops) > 1 or loops[0].primitive.name == "while":
            return ()
        trips.append(loops[0].params["length"])
        jaxpr = next(nested_jaxprs(loops[0].params))


def match_kernel(instruction: Instruction, operands: Sequence[Array], kernels: Sequence[Kernel]) -> Kernel | None:
    """Returns the kernel of a custom call, by name, operands and results; None if no traced kernel matches."""
    types = tuple(map(str, operands)), tuple(map(str, instruction.arrays))
    matches = [
        kernel
        for kernel in kernels
        if kernel.name in instruction.op_name and (kernel.operands, kernel.results) == types
    ]
    # The name of one kernel may be part of another's.
    return max(matches, key=lambda kernel: len(kernel.name), default=None)


@dataclasses.dataclass(frozen=True)
class CompiledCycles:
    """The TPU compiler's analysis of a kernel that was compiled alone.

    Attributes:
      cycles: static estimate of one call; 0 if the compiler gives none.
      bundles: executed instruction bundles, a lower bound of the cycles; 0 if the trip counts are unknown.
    """

    cycles: int = 0
    bundles: int = 0


@dataclasses.dataclass(frozen=True)
class KernelCost:
    """Time of one call of a kernel.

    Attributes:
      flops_seconds: FLOPs / peak FLOP/s.
      bytes_seconds: bytes / HBM bandwidth.
      static_seconds: the compiler's static cycles / clock rate; 0 if unknown.
      bundle_seconds: executed instruction bundles / cores / clock rate; 0 if unknown.
    """

    flops_seconds: float
    bytes_seconds: float
    static_seconds: float = 0.0
    bundle_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """max(static, bytes / bandwidth). The static estimate is optimistic about HBM: it does not wait for DMA."""
        return max(self.static_seconds or self.flops_seconds, self.bytes_seconds)

    @property
    def roofline_seconds(self) -> float:
        """max(FLOPs / peak, bytes / bandwidth), a lower bound."""
        return max(self.flops_seconds, self.bytes_seconds)

    @property
    def source(self) -> str:
        """Origin of `seconds`: "static", "bandwidth", or "roofline" if there is no static estimate."""
        if not self.static_seconds:
            return "roofline"
        return "static" if self.static_seconds >= self.bytes_seconds else "bandwidth"


def kernel_cost(
    instruction: Instruction, operands: Sequence[Array], kernel: Kernel | None, compiled: CompiledCycles, chip: Chip
) -> KernelCost:
    """Returns the cost of one custom call.

    FLOPs are counted in the kernel's jaxpr; they may exceed the `cost_estimate` declared to `pallas_call`, as kernels
    also compute padding. Bytes are the declared ones, else the sizes of operands and results in HBM.
    """
    text = instruction.attributes
    declared = {name: int(value) for name, value in re.findall(r'"(flops|bytes_accessed)":"?(\d+)', text)}
    flops = max(declared.get("flops", 0), kernel.flops if kernel else 0)
    hbm_bytes = sum(array.bytes for array in (*operands, *instruction.arrays) if not array.on_chip)
    num_bytes = declared.get("bytes_accessed") or hbm_bytes
    return KernelCost(flops / chip.peak_flops, num_bytes / chip.memory_bandwidth, *compiled_seconds(compiled, chip))


def compiled_seconds(compiled: CompiledCycles, chip: Chip) -> tuple[float, float]:
    """Returns (static, bundle) seconds of one call. Bundles are counted over the whole grid, which the cores share."""
    clock = chip.clock_hz or math.inf
    return compiled.cycles / clock, compiled.bundles / clock / chip.cores
