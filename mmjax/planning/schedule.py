"""How long a compiled step takes: its schedule, walked through with a clock for the chip and one for each mesh axis.

The chip carries instructions out in the order of the text, each for as many cycles as the compiler estimates. A
collective that waits in its place takes its seconds in full; one that is started and awaited later takes what is left
when the chip comes to wait for it. Collectives over one axis queue for its links.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from jax.sharding import Mesh

from mmjax.planning.chips import Chip
from mmjax.planning.collectives import Collective, collectives_of
from mmjax.planning.hlo import Computation, Instruction, Module
from mmjax.planning.roofline import roofline_seconds


@dataclasses.dataclass
class Moved:
    """A collective instruction over a whole step.

    Attributes:
      runs: how often it runs.
      exposed: seconds of all its runs in which the chip waits.
    """

    collective: Collective
    runs: int = 0
    exposed: float = 0.0

    @property
    def bytes(self) -> int:
        return self.runs * self.collective.bytes

    @property
    def seconds(self) -> float:
        return self.runs * self.collective.seconds

    @property
    def hidden(self) -> bool:
        """Whether the schedule hides nine tenths of it."""
        return self.exposed <= 0.1 * self.seconds


@dataclasses.dataclass
class ProgramSchedule:
    """What a step does.

    Attributes:
      cycles: of all instructions that the compiler has an estimate for, loops counted as often as they run.
      compute: seconds of these cycles, or, where there are none, of a roofline.
      kernels: seconds of custom calls, for which it has none.
      seconds: from the beginning to the end, what is waited for included.
      collectives: each collective instruction.
      places: {"file.py:line": seconds of compute and kernels that come from there}.
    """

    cycles: int = 0
    compute: float = 0.0
    kernels: float = 0.0
    seconds: float = 0.0
    collectives: dict[str, Moved] = dataclasses.field(default_factory=dict)
    places: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def exposed(self) -> float:
        """Seconds of collectives that nothing hides."""
        return sum(moved.exposed for moved in self.collectives.values())


Kernels = Mapping[tuple[str, tuple[tuple[int, ...], ...]], int]
"""What `mmjax.planning.flops.kernel_flops` finds."""


def read_schedule(module: Module, mesh: Mesh, chip: Chip, kernels: Kernels | None = None) -> ProgramSchedule:
    """Walks through a compiled step.

    Args:
      kernels: FLOPs of its Pallas kernels.
    """
    return _Walk(module, mesh, chip, kernels or {}).schedule


def kernel_seconds(computation: Computation, instruction: Instruction, chip: Chip, kernels: Kernels) -> float:
    """Of a custom call: max(FLOPs / peak, bytes / bandwidth).

    The FLOPs are those that its program has, which may be more than the kernel declares (`cost_estimate` of a Pallas
    call), where it fills tiles; the bytes are those that it declares, or else of its operands and results.
    """
    text = instruction.attributes
    declared = {name: int(value) for name, value in re.findall(r'"(flops|bytes_accessed)":"?(\d+)', text)}
    shapes = tuple(array.dimensions for array in instruction.arrays)
    named = [flops for (name, results), flops in kernels.items() if name in instruction.operation and results == shapes]
    flops = max(declared.get("flops", 0), *named, 0)
    operands = [computation.by_name[name] for name in instruction.operands if name in computation.by_name]
    touched = sum(array.bytes for each in (*operands, instruction) for array in each.arrays if not array.on_chip)
    moved = declared.get("bytes_accessed") or touched
    return max(flops / chip.peak_flops, moved / chip.memory_bandwidth)


def is_kernel(instruction: Instruction) -> bool:
    """Whether an instruction is a program of its own that somebody wrote, like a Pallas call."""
    return instruction.opcode == "custom-call" and bool(
        re.search(r'custom_call_target="(tpu_custom_call|Mosaic|__gpu\$|triton)', instruction.attributes)
    )


class _Walk:
    def __init__(self, module: Module, mesh: Mesh, chip: Chip, kernels: Kernels):
        self.module, self.mesh, self.chip, self.kernels = module, mesh, chip, kernels
        self.schedule = ProgramSchedule()
        self.now = 0.0
        self.free: dict[str, float] = {}
        self.pending: dict[str, tuple[float, str]] = {}
        self.roles: dict[str, tuple[str, str]] = {}
        self.found: dict[str, list[Collective]] = {}
        self.located: dict[str, str] = {}
        self.computation(module.entry, 1)
        self.schedule.seconds = self.now

    def computation(self, computation: Computation, times: int) -> None:
        for instruction in computation.instructions:
            if instruction.opcode == "while":
                self.loop(instruction, times)
                continue
            inside = self.module.called(instruction)
            if inside and instruction.opcode != "async-start":
                self.branches(instruction, inside, times)
                continue
            self.instruction(computation, instruction, times)

    def loop(self, instruction: Instruction, times: int) -> None:
        """The first two rounds, and as many like the second as follow: one round may wait for what another started."""
        body, trips = self.module.computations[str(instruction.attribute("body"))], self.module.trips(instruction)
        if trips:
            self.computation(body, times)
        if trips > 1:
            start = self.now
            self.computation(body, times * (trips - 1))
            later = (self.now - start) * (trips - 2)
            self.now += later
            for key, (end, name) in self.pending.items():
                if end > start:
                    self.pending[key] = (end + later, name)

    def branches(self, instruction: Instruction, inside: list[Computation], times: int) -> None:
        """Of a conditional the slowest branch counts; a call has one."""
        start, longest = self.now, self.now
        for branch in inside:
            self.now = start
            self.computation(branch, times)
            longest = max(longest, self.now)
        self.now = longest

    def instruction(self, computation: Computation, instruction: Instruction, times: int) -> None:
        role, key = self.role(instruction)
        if role == "done":
            self.wait(key, times)
        for number, collective in enumerate(self.collectives(instruction) if role in ("start", "sync") else ()):
            name = f"{instruction.name}/{number}"
            moved = self.schedule.collectives.setdefault(name, Moved(collective))
            moved.runs += times
            begin = max([self.now, *(self.free.get(link, 0.0) for link in collective.links)])
            end = begin + collective.seconds
            for link in collective.links:
                self.free[link] = end
            if role == "start":
                self.pending[f"{key}/{number}"] = (end, name)
            else:
                moved.exposed += times * (end - self.now)
                self.now = end
        self.compute(computation, instruction, times)

    def compute(self, computation: Computation, instruction: Instruction, times: int) -> None:
        cycles, seconds = instruction.cycles, 0.0
        if cycles and self.chip.clock:
            seconds = cycles / self.chip.clock
            self.schedule.cycles += times * cycles
            self.schedule.compute += times * seconds
        elif self.chip.clock is None:
            seconds = roofline_seconds(self.module, instruction, self.chip)
            self.schedule.compute += times * seconds
        elif is_kernel(instruction):
            seconds = kernel_seconds(computation, instruction, self.chip, self.kernels)
            self.schedule.kernels += times * seconds
        if seconds:
            self.now += seconds
            place = self.place(instruction)
            self.schedule.places[place] = self.schedule.places.get(place, 0.0) + times * seconds

    def place(self, instruction: Instruction) -> str:
        if instruction.name not in self.located:
            self.located[instruction.name] = self.module.location(instruction)
        return self.located[instruction.name]

    def wait(self, key: str, times: int) -> None:
        number = 0
        while f"{key}/{number}" in self.pending:
            end, name = self.pending.pop(f"{key}/{number}")
            if end > self.now:
                self.schedule.collectives[name].exposed += times * (end - self.now)
                self.now = end
            number += 1

    def collectives(self, instruction: Instruction) -> list[Collective]:
        if instruction.name not in self.found:
            self.found[instruction.name] = list(collectives_of(self.module, instruction, self.mesh, self.chip))
        return self.found[instruction.name]

    def role(self, instruction: Instruction) -> tuple[str, str]:
        """What an instruction is to collectives, and the name under which start and end find each other."""
        if instruction.name not in self.roles:
            self.roles[instruction.name] = self.find_role(instruction)
        return self.roles[instruction.name]

    def find_role(self, instruction: Instruction) -> tuple[str, str]:
        opcode = instruction.opcode
        if opcode.endswith("-done") and instruction.operands:
            return "done", instruction.operands[0]
        if opcode.endswith("-start") or opcode == "recv":
            return "start", instruction.name
        if opcode != "fusion":
            return "sync", instruction.name
        # On TPUs fusions start a collective, carry it further beside their own work, and end it.
        inside = list(self.module.inside(instruction))
        channel = next((found for each in inside if (found := each.attribute("channel_id"))), instruction.name)
        targets = [each.attribute("custom_call_target") or _target(each) for each in inside]
        if "AsyncCollectiveStart" in targets:
            return "start", f"channel {channel}"
        if "AsyncCollectiveDone" in targets:
            return "done", f"channel {channel}"
        if str(instruction.attribute("calls")).startswith("async_collective_fusion"):
            return "step", f"channel {channel}"
        return "sync", instruction.name


def _target(instruction: Instruction) -> str | None:
    match = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
    return match[1] if match else None
