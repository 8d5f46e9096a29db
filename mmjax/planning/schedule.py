"""Step time of a compiled program: simulates its schedule with one clock for the chip and one for each link direction.

The chip executes instructions in program order, each for the compiler's estimated cycles. A blocking collective adds
its full time. An asynchronous collective adds only the time left when the chip waits for it. Collectives over the same
links queue.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Literal

from jax.sharding import Mesh

from mmjax.planning.chips import Chip
from mmjax.planning.collectives import Collective, collectives_of
from mmjax.planning.hlo import Computation, Instruction, Module
from mmjax.planning.kernels import CompiledCycles, Kernel, KernelCost, kernel_cost, match_kernel
from mmjax.planning.roofline import hbm_bytes, roofline_seconds, transfer_bytes

FindCycles = Callable[[Kernel], CompiledCycles]
"""Returns the compiler's analysis of a kernel."""


@dataclasses.dataclass
class CollectiveTotals:
    """A collective instruction, summed over its executions in a step.

    Attributes:
      collective: the collective, with bytes and seconds of one execution.
      executions: number of executions.
      exposed_seconds: total time that the chip waits for it.
    """

    collective: Collective
    executions: int = 0
    exposed_seconds: float = 0.0

    @property
    def bytes(self) -> int:
        """Total bytes of the array on one chip."""
        return self.executions * self.collective.bytes

    @property
    def seconds(self) -> float:
        """Total time on the links."""
        return self.executions * self.collective.seconds

    @property
    def hidden(self) -> bool:
        """True if computation overlaps at least 90 % of the time."""
        return self.exposed_seconds <= 0.1 * self.seconds


@dataclasses.dataclass
class KernelTotals:
    """A kernel with the shapes of its calls, summed over its executions in a step.

    Attributes:
      name: name of the kernel, or of the custom call's operation if the step was traced without it.
      shapes: "operands -> results", as HLO types.
      cost: cost of one call.
      executions: number of executions.
    """

    name: str
    shapes: str
    cost: KernelCost
    executions: int = 0


@dataclasses.dataclass
class StepTiming:
    """Simulated timing of one step on one device.

    Attributes:
      cycles: the compiler's estimated cycles, summed over all executions.
      compute_seconds: time of these cycles; roofline time if the compiler estimates no cycles.
      kernel_seconds: time of custom kernels, for which the program has no cycle estimate.
      prefetch_seconds: time that the chip waits for prefetches.
      step_seconds: time of the whole step, including exposed collectives and prefetches.
      collectives: totals by "instruction/index".
      kernels: totals by (name, shapes).
      line_seconds: {"file.py:line": compute and kernel seconds}.
    """

    cycles: int = 0
    compute_seconds: float = 0.0
    kernel_seconds: float = 0.0
    prefetch_seconds: float = 0.0
    step_seconds: float = 0.0
    collectives: dict[str, CollectiveTotals] = dataclasses.field(default_factory=dict)
    kernels: dict[tuple[str, str], KernelTotals] = dataclasses.field(default_factory=dict)
    line_seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def exposed_seconds(self) -> float:
        """Time that the chip waits for collectives."""
        return sum(totals.exposed_seconds for totals in self.collectives.values())


def simulate_step(
    module: Module,
    mesh: Mesh,
    chip: Chip,
    kernels: Sequence[Kernel] = (),
    find_cycles: FindCycles = lambda kernel: CompiledCycles(),
) -> StepTiming:
    """Simulates the schedule of a compiled step.

    Args:
      module: the compiled step.
      mesh: mesh that it was compiled for.
      chip: specification of the devices.
      kernels: its Pallas kernels.
      find_cycles: returns the compiler's analysis of a kernel; by default unknown.

    Raises:
      ValueError: if the trip count of a loop is unknown.
    """
    return _Simulator(module, mesh, chip, kernels, find_cycles).timing


def is_kernel(instruction: Instruction) -> bool:
    """Returns True for a hand-written kernel, like a Pallas or Triton call."""
    return instruction.opcode == "custom-call" and bool(
        re.search(r'custom_call_target="(tpu_custom_call|Mosaic|__gpu\$|triton)', instruction.attributes)
    )


Role = Literal["start", "done", "advance", "sync"]


@dataclasses.dataclass(frozen=True)
class _Info:
    """Time-independent properties of an instruction.

    Attributes:
      role: "start" launches asynchronous collectives, "done" waits for them, "advance" is a fusion that advances one
        alongside its own computation; "sync" is any other instruction, including blocking collectives.
      key: key shared by the start and the done of a collective.
      collectives: collectives that the instruction launches.
      location: "file.py:line", or "".
      transfer_seconds: HBM time of a prefetch that the instruction starts.
    """

    role: Role
    key: str
    collectives: tuple[Collective, ...]
    location: str
    transfer_seconds: float


@dataclasses.dataclass
class _InFlight:
    """An asynchronous collective that has started."""

    end: float
    totals: CollectiveTotals


class _Simulator:
    """Simulates a module in program order. Times are in seconds; `times` is the execution count of an instruction."""

    def __init__(self, module: Module, mesh: Mesh, chip: Chip, kernels: Sequence[Kernel], find_cycles: FindCycles):
        self.module, self.mesh, self.chip = module, mesh, chip
        self.kernels, self.find_cycles = kernels, find_cycles
        self.timing = StepTiming()
        self.now = 0.0
        self.link_free: dict[str, float] = {}
        self.in_flight: dict[str, _InFlight] = {}
        # Prefetches in launch order: {name of the start instruction: HBM seconds left}.
        self.transfers: dict[str, float] = {}
        self.infos: dict[str, _Info] = {}
        self.run(module.entry, 1)
        self.timing.step_seconds = self.now

    def run(self, computation: Computation, times: int) -> None:
        for instruction in computation.instructions:
            called = self.module.called_computations(instruction)
            if instruction.opcode == "while":
                self.run_loop(instruction, times)
            elif called and instruction.opcode != "async-start":
                self.run_branches(called, times)
            else:
                self.execute(computation, instruction, times)

    def run_loop(self, instruction: Instruction, times: int) -> None:
        """Simulates two iterations and extrapolates the second, which may wait for collectives started in the first."""
        body = self.module.computations[str(instruction.attribute("body"))]
        trips = self.module.trip_count(instruction)
        if trips:
            self.run(body, times)
        if trips > 1:
            start = self.now
            self.run(body, times * (trips - 1))
            extrapolated = (self.now - start) * (trips - 2)
            self.now += extrapolated
            for flight in self.in_flight.values():
                if flight.end > start:
                    flight.end += extrapolated

    def run_branches(self, called: list[Computation], times: int) -> None:
        """Simulates all branches of a conditional, or a call, from the same start; the slowest sets the time."""
        start, slowest_end = self.now, self.now
        for branch in called:
            self.now = start
            self.run(branch, times)
            slowest_end = max(slowest_end, self.now)
        self.now = slowest_end

    def execute(self, computation: Computation, instruction: Instruction, times: int) -> None:
        info = self.info(instruction)
        if info.transfer_seconds:
            self.transfers[info.key] = info.transfer_seconds
        if info.role == "done" and info.key in self.transfers:
            self.wait_for_transfer(info.key, times)
        index = 0
        while info.role == "done" and (flight := self.in_flight.pop(f"{info.key}/{index}", None)):
            self.wait(flight.end, flight.totals, times)
            index += 1
        for index, collective in enumerate(info.collectives):
            name = f"{instruction.name}/{index}"
            totals = self.timing.collectives.setdefault(name, CollectiveTotals(collective))
            totals.executions += times
            end = max([self.now, *(self.link_free.get(link, 0.0) for link in collective.links)]) + collective.seconds
            self.link_free |= dict.fromkeys(collective.links, end)
            if info.role == "start":
                self.in_flight[f"{info.key}/{index}"] = _InFlight(end, totals)
            else:
                self.wait(end, totals, times)
        self.compute(computation, instruction, times)

    def wait(self, end: float, totals: CollectiveTotals, times: int) -> None:
        if end > self.now:
            totals.exposed_seconds += times * (end - self.now)
            self.progress_transfers(end - self.now)
            self.now = end

    def wait_for_transfer(self, key: str, times: int) -> None:
        """Waits for a prefetch and those before it in the queue."""
        seconds = 0.0
        for name in list(self.transfers):
            seconds += self.transfers.pop(name)
            if name == key:
                break
        self.now += seconds
        self.timing.prefetch_seconds += times * seconds

    def progress_transfers(self, seconds: float) -> None:
        """Gives HBM time to the prefetches in flight, first come, first served. Finished ones stay, with 0 left."""
        for name, left in self.transfers.items():
            used = min(left, seconds)
            self.transfers[name] = left - used
            seconds -= used

    def compute(self, computation: Computation, instruction: Instruction, times: int) -> None:
        cycles, seconds = instruction.cycles, 0.0
        if cycles and self.chip.clock_hz:
            seconds = cycles / self.chip.clock_hz
            self.timing.cycles += times * cycles
            self.timing.compute_seconds += times * seconds
        elif self.chip.clock_hz is None:
            seconds = roofline_seconds(self.module, instruction, self.chip)
            self.timing.compute_seconds += times * seconds
        elif is_kernel(instruction):
            totals = self.kernel(computation, instruction)
            totals.executions += times
            seconds = totals.cost.seconds
            self.timing.kernel_seconds += times * seconds
        if seconds:
            self.now += seconds
            if self.transfers:
                busy = hbm_bytes(self.module, instruction) / self.chip.memory_bandwidth
                self.progress_transfers(max(0.0, seconds - busy))
            line = self.info(instruction).location
            self.timing.line_seconds[line] = self.timing.line_seconds.get(line, 0.0) + times * seconds

    def kernel(self, computation: Computation, instruction: Instruction) -> KernelTotals:
        """Returns the totals of the kernel that a custom call runs."""
        operands = [
            array
            for name in instruction.operands
            if name in computation.by_name
            for array in computation.by_name[name].arrays
        ]
        kernel = match_kernel(instruction, operands, self.kernels)
        name = kernel.name if kernel else instruction.op_name.rpartition("/")[2] or instruction.name
        shapes = f"{', '.join(map(str, operands))} -> {', '.join(map(str, instruction.arrays))}"
        if (name, shapes) not in self.timing.kernels:
            compiled = self.find_cycles(kernel) if kernel else CompiledCycles()
            cost = kernel_cost(instruction, operands, kernel, compiled, self.chip)
            self.timing.kernels[name, shapes] = KernelTotals(name, shapes, cost)
        return self.timing.kernels[name, shapes]

    def info(self, instruction: Instruction) -> _Info:
        if instruction.name not in self.infos:
            role, key = _role(self.module, instruction)
            collectives: tuple[Collective, ...] = ()
            if role in ("start", "sync"):
                collectives = tuple(collectives_of(self.module, instruction, self.mesh, self.chip))
            location = self.module.location(instruction)
            transfer = 0.0
            if self.chip.clock_hz:
                transfer = transfer_bytes(self.module, instruction) / self.chip.memory_bandwidth
            self.infos[instruction.name] = _Info(role, key, collectives, location, transfer)
        return self.infos[instruction.name]


def _role(module: Module, instruction: Instruction) -> tuple[Role, str]:
    """Returns (role, key), see `_Info`."""
    opcode = instruction.opcode
    if opcode.endswith("-done") and instruction.operands:
        return "done", instruction.operands[0]
    if opcode.endswith("-start") or opcode == "recv":
        return "start", instruction.name
    if opcode != "fusion":
        return "sync", instruction.name
    # On TPUs, fusions start a collective, advance it alongside their own computation, and finish it.
    nested = list(module.walk(instruction))
    channel = next((channel for each in nested if (channel := each.attribute("channel_id"))), instruction.name)
    targets = [each.attribute("custom_call_target") or _target(each) for each in nested]
    if "AsyncCollectiveStart" in targets:
        return "start", f"channel {channel}"
    if "AsyncCollectiveDone" in targets:
        return "done", f"channel {channel}"
    if str(instruction.attribute("calls")).startswith("async_collective_fusion"):
        return "advance", f"channel {channel}"
    return "sync", instruction.name


def _target(instruction: Instruction) -> str | None:
    match = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
    return match[1] if match else None
