"""Plans: compiles the train step of a recipe ahead of time and reports its memory, time and collectives."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from mmjax.planning.chips import Chip, find_chip
from mmjax.planning.flops import step_flops
from mmjax.planning.hlo import Module
from mmjax.planning.kernel_cycles import KernelCycles
from mmjax.planning.kernels import CompiledCycles, Kernel, count_kernel_calls
from mmjax.planning.lower_bound import LowerBound
from mmjax.planning.memory import Buffer, MemoryUse, read_memory
from mmjax.planning.schedule import CollectiveTotals, KernelTotals, StepTiming, simulate_step
from mmjax.planning.topology import GENERATIONS

LOW_RATIO = 0.95
"""Lower bound of measured / simulated step time. Published runs: 0.97 to 1.05 (`experiments/03_plans`)."""
HIGH_RATIO = 1.3
"""Upper bound of measured / simulated step time: an allowance for slower links and clocks and runtime overhead."""


class Plannable(Protocol):
    """The part of `mmjax.experiment.Experiment` that `make_plan` needs."""

    config: Any
    mesh: Mesh
    shapes: Any
    objective: Any

    @property
    def abstract_batch(self) -> Any:
        """The global batch as `jax.ShapeDtypeStruct`s."""

    @property
    def examples_per_step(self) -> float:
        """Examples per global batch; with packing, the average."""

    def lower_step(self) -> Any:
        """Returns the `jax.stages.Lowered` train step."""

    def trace_step(self) -> Any:
        """Returns the train step as a `ClosedJaxpr`."""


@dataclasses.dataclass(frozen=True)
class CollectiveSummary:
    """Collectives of a step, grouped by kind, mesh axes and whether computation hides them.

    Attributes:
      kind: one of `mmjax.planning.collectives.KINDS`.
      axis: crossed mesh axes, joined by "+".
      bytes: total size of the arrays on one chip.
      hidden: True if computation overlaps at least 90 % of the time.
      runs: number of executions.
      seconds: total time on the links.
      exposed_seconds: time that the chip waits for them.
    """

    kind: str
    axis: str
    bytes: int
    hidden: bool
    runs: int
    seconds: float
    exposed_seconds: float


@dataclasses.dataclass(frozen=True)
class KernelSummary:
    """Calls of a Pallas kernel with equal shapes.

    Attributes:
      name: name of the kernel.
      shapes: "operands -> results" of one call.
      runs: number of calls in a step.
      seconds: time of one call, max(static, bytes / bandwidth).
      source: "static" or "bandwidth"; "roofline" if the compiler gives no static estimate.
      static_seconds: the compiler's static estimate of one call; None if unknown.
      bundle_seconds: time of the executed instruction bundles, a lower bound; None if unknown.
      roofline_seconds: max(FLOPs / peak, bytes / bandwidth), a lower bound.
    """

    name: str
    shapes: str
    runs: int
    seconds: float
    source: str
    static_seconds: float | None
    bundle_seconds: float | None
    roofline_seconds: float

    @property
    def uncertain(self) -> bool:
        """True if the static estimate exceeds twice the executed bundles."""
        return bool(self.bundle_seconds) and (self.static_seconds or 0) > 2 * (self.bundle_seconds or 0)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Memory, time and collectives of a train step, per device unless stated otherwise.

    Attributes:
      recipe: recipe name as given by the user.
      topology: topology name.
      device: `jax.Device.device_kind`.
      devices, chips: counts over the whole mesh; a TPU7x chip has two devices.
      mesh: sizes of the mesh axes larger than 1.
      batch_size: global batch size, in slots.
      parameters: parameter count of the whole model.
      fits: True if the step fits in memory.
      peak_bytes, capacity_bytes: memory that the step needs and that the device has; capacity None if unknown.
      model_flops: model FLOPs of one step, see `mmjax.planning.flops`; None if a trip count is unknown.
      peak_flops: peak bfloat16 FLOP/s.
      memory: memory use by kind; None if the compiler failed for lack of memory.
      cycles: the compiler's estimate including trip counts; None if it estimates none.
      compute_seconds, kernel_seconds: time of compiler-generated code and of custom kernels.
      collective_seconds, exposed_seconds: time of all collectives, and the part that computation does not hide.
      prefetch_seconds: time that the chip waits for prefetches from HBM to VMEM.
      step_seconds: compute, kernel, exposed and prefetch time; None if the device's speed is unknown.
      collectives: summaries by kind, axes and hidden.
      kernels: summaries of the Pallas kernels, by total time.
      slowest: (file.py:line, seconds) of the slowest source lines.
      examples_per_row: average examples per slot of `batch_size`; below 1 if packing leaves slots empty.
      bound: lower bound of the memory from shapes; None if it was not computed.
      compiled: False if the step was not compiled because its lower bound of memory exceeds the capacity.
      time_unknown: reason for missing times, or "".
      compile_seconds: compile time.
      versions: versions of JAX and its compilers.
    """

    recipe: str
    topology: str
    device: str
    devices: int
    chips: int
    mesh: Mapping[str, int]
    batch_size: int
    parameters: int
    fits: bool
    peak_bytes: int
    capacity_bytes: int | None
    model_flops: int | None
    peak_flops: float | None = None
    memory: MemoryUse | None = None
    cycles: int | None = None
    compute_seconds: float | None = None
    kernel_seconds: float | None = None
    collective_seconds: float | None = None
    exposed_seconds: float | None = None
    prefetch_seconds: float | None = None
    step_seconds: float | None = None
    collectives: tuple[CollectiveSummary, ...] = ()
    kernels: tuple[KernelSummary, ...] = ()
    slowest: tuple[tuple[str, float], ...] = ()
    examples_per_row: float = 1.0
    bound: LowerBound | None = None
    compiled: bool = True
    time_unknown: str = ""
    compile_seconds: float = 0.0
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def missing_bytes(self) -> int:
        """Bytes by which the peak exceeds the capacity."""
        return max(0, self.peak_bytes - (self.capacity_bytes or self.peak_bytes))

    @property
    def step_seconds_range(self) -> tuple[float, float] | None:
        """Expected range of a measured step."""
        return None if self.step_seconds is None else (LOW_RATIO * self.step_seconds, HIGH_RATIO * self.step_seconds)

    @property
    def utilisation(self) -> float | None:
        """Model FLOPs utilisation (MFU): model FLOPs / (peak bfloat16 FLOP/s * step time)."""
        if self.step_seconds is None or self.model_flops is None or not self.peak_flops:
            return None
        return self.model_flops / self.peak_flops / self.step_seconds

    @property
    def examples_per_second(self) -> float | None:
        """Throughput of all devices together."""
        return self.examples_per_row * self.batch_size / self.step_seconds if self.step_seconds else None

    def as_dict(self) -> dict[str, Any]:
        """Converts to plain values, the output of `--json`."""
        return dataclasses.asdict(self) | {
            "missing_bytes": self.missing_bytes,
            "step_seconds_range": self.step_seconds_range,
            "utilisation": self.utilisation,
            "examples_per_second": self.examples_per_second,
        }


def cost(plan: Plan, examples: float, price: float) -> float | None:
    """Returns the cost of training on `examples` at `price` per chip-hour; None if the throughput is unknown."""
    throughput = plan.examples_per_second
    return None if throughput is None else examples / throughput / 3600 * plan.chips * price


def make_plan(
    recipe: str,
    topology: str,
    experiment: Plannable,
    cycles: KernelCycles | None = None,
    log: Callable[[str], None] = lambda message: None,
    compile_kernels: bool = True,
) -> tuple[Plan, str | None]:
    """Compiles the train step of an experiment for the devices of its mesh and analyses the program.

    Args:
      recipe: recipe name, for the record.
      topology: topology name, for the record.
      experiment: experiment on the mesh to plan for.
      cycles: table of compiled kernels; by default that of the installed libtpu.
      log: prints progress messages.
      compile_kernels: compiles the Pallas kernels that are not in the table; if False, they count at their roofline.

    Returns:
      The plan and the HLO text, or None in place of the text if the compiler ran out of device memory.
    """
    mesh = experiment.mesh
    device = mesh.devices.flat[0]
    chip = find_chip(device.device_kind)
    fields = _recipe_fields(recipe, topology, experiment)
    kernels: list[Kernel] = []
    alongside: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if device.platform == "tpu" and chip is not None:
        kernels = list(count_kernel_calls(experiment.trace_step().jaxpr))
        cycles = cycles or KernelCycles(fields["versions"]["libtpu"])
        if compile_kernels:
            alongside = cycles.compile_alongside(device.device_kind, single_host(chip), kernels, log)
    lowered = experiment.lower_step()
    start = time.monotonic()
    try:
        with alongside:
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = needed_bytes(str(error))
        if needed is None:
            raise
        fields["compile_seconds"] = time.monotonic() - start
        return Plan(fits=False, peak_bytes=needed, **fields), None
    fields["compile_seconds"] = time.monotonic() - start
    text = compiled.as_text()
    module = Module(text)
    memory = read_memory(module, compiled.memory_analysis(), fields["capacity_bytes"] or 0)
    # The TPU compiler fails if the step does not fit; other compilers do not check.
    assumed_fit = device.platform == "tpu" or fields["capacity_bytes"] is None
    fields |= {"memory": memory, "peak_bytes": memory.peak, "fits": assumed_fit or memory.fits}
    if chip is None:
        fields["time_unknown"] = f"no specification of the device kind {device.device_kind!r}"
    else:
        try:
            timing = simulate_step(module, mesh, chip, kernels, find_cycles(cycles, device.device_kind))
            fields |= timing_fields(timing, chip)
        except ValueError as error:
            # The trip count of a loop depends on data.
            fields["time_unknown"] = str(error)
    return Plan(**fields), text


def plan_from_bound(recipe: str, topology: str, experiment: Plannable, bound: LowerBound) -> Plan:
    """Returns the plan of a step whose lower bound of memory exceeds the capacity, without compiling it."""
    fields = _recipe_fields(recipe, topology, experiment)
    return Plan(fits=False, peak_bytes=bound.total, bound=bound, compiled=False, **fields)


def plan_from_dict(values: Mapping[str, Any]) -> Plan:
    """Restores a plan from `Plan.as_dict`, or its JSON."""
    names = {field.name for field in dataclasses.fields(Plan)}
    fields = {name: value for name, value in values.items() if name in names}
    if memory := fields.get("memory"):
        fields["memory"] = MemoryUse(**{**memory, "largest": tuple(Buffer(**buffer) for buffer in memory["largest"])})
    if bound := fields.get("bound"):
        fields["bound"] = LowerBound(**bound)
    fields["collectives"] = tuple(CollectiveSummary(**row) for row in fields.get("collectives", ()))
    fields["kernels"] = tuple(KernelSummary(**row) for row in fields.get("kernels", ()))
    fields["slowest"] = tuple((location, seconds) for location, seconds in fields.get("slowest", ()))
    return Plan(**fields)


def _recipe_fields(recipe: str, topology: str, experiment: Plannable) -> dict[str, Any]:
    """Returns the fields of a `Plan` that need no compilation."""
    mesh = experiment.mesh
    device = mesh.devices.flat[0]
    chip = find_chip(device.device_kind)
    return {
        "recipe": recipe,
        "topology": topology,
        "device": device.device_kind,
        "devices": mesh.size,
        "chips": max(1, mesh.size // (chip.devices_per_chip if chip else 1)),
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "batch_size": experiment.config.train.batch_size,
        "examples_per_row": experiment.examples_per_step / experiment.config.train.batch_size,
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(experiment.shapes.parameters)),
        "capacity_bytes": capacity_bytes(device),
        "peak_flops": chip.peak_flops if chip else None,
        "model_flops": model_flops(experiment),
        "versions": versions(),
    }


def find_cycles(cycles: KernelCycles | None, device_kind: str) -> Callable[[Kernel], CompiledCycles]:
    """Returns a function from a kernel to its compiled cycles; 0 for a kernel that is not in the table."""
    return lambda kernel: (cycles and cycles.find(device_kind, kernel)) or CompiledCycles()


def single_host(chip: Chip) -> str:
    """Returns the topology of one host of a TPU generation, for which kernels are compiled."""
    return f"{chip.name}:2x2" + "x1" * (GENERATIONS[chip.name].rank - 2)


def timing_fields(timing: StepTiming, chip: Chip) -> dict[str, Any]:
    """Returns the time-related fields of a `Plan`."""
    groups: dict[tuple[str, str, bool], list[CollectiveTotals]] = {}
    for totals in timing.collectives.values():
        axis = "+".join(totals.collective.axes)
        groups.setdefault((totals.collective.kind, axis, totals.hidden), []).append(totals)
    summaries = [
        CollectiveSummary(
            kind=kind,
            axis=axis,
            hidden=hidden,
            bytes=sum(totals.bytes for totals in group),
            runs=sum(totals.executions for totals in group),
            seconds=sum(totals.seconds for totals in group),
            exposed_seconds=sum(totals.exposed_seconds for totals in group),
        )
        for (kind, axis, hidden), group in groups.items()
    ]
    return {
        "cycles": timing.cycles if chip.clock_hz else None,
        "compute_seconds": timing.compute_seconds,
        "kernel_seconds": timing.kernel_seconds,
        "collective_seconds": sum(summary.seconds for summary in summaries),
        "exposed_seconds": timing.exposed_seconds,
        "prefetch_seconds": timing.prefetch_seconds if chip.clock_hz else None,
        "step_seconds": timing.step_seconds,
        "kernels": kernel_summaries(list(timing.kernels.values())),
        "slowest": tuple(sorted(timing.line_seconds.items(), key=lambda item: -item[1])[:10]),
        "collectives": tuple(sorted(summaries, key=lambda summary: -summary.seconds)),
    }


def kernel_summaries(kernels: Sequence[KernelTotals]) -> tuple[KernelSummary, ...]:
    """Returns the summaries of kernels, in descending order of total time."""
    summaries = [
        KernelSummary(
            name=totals.name,
            shapes=totals.shapes,
            runs=totals.executions,
            seconds=totals.cost.seconds,
            source=totals.cost.source,
            static_seconds=totals.cost.static_seconds or None,
            bundle_seconds=totals.cost.bundle_seconds or None,
            roofline_seconds=totals.cost.roofline_seconds,
        )
        for totals in kernels
    ]
    return tuple(sorted(summaries, key=lambda summary: -summary.runs * summary.seconds))


def model_flops(experiment: Plannable) -> int | None:
    """Returns the model FLOPs of one step per device; None if a loop with matmuls has an unknown trip count."""
    try:
        return step_flops(experiment) // experiment.mesh.size
    except ValueError:
        return None


def needed_bytes(message: str) -> int | None:
    """Parses the total bytes that a program needs from an out-of-memory message; None for other messages."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    units = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    for pattern in (r"Used ([\d.]+)([KMGT]?) of", r"temporaries \(([\d.]+)([KMGT]?)\)", r"allocate ([\d.]+)([KMGT]?)"):
        match = re.search(pattern, message)
        if match:
            return int(float(match[1]) * units[match[2]])
    return None


def capacity_bytes(device: jax.Device) -> int | None:
    """Returns the memory of a device that a program can use, in bytes; None if unknown."""
    chip = find_chip(device.device_kind)
    return chip.memory_bytes if chip else device_memory(device)


def device_memory(device: jax.Device) -> int | None:
    """Returns the memory limit of an attached device in bytes; None if it reports none."""
    try:
        return (device.memory_stats() or {}).get("bytes_limit")
    except jax.errors.JaxRuntimeError:
        return None


def versions() -> dict[str, str]:
    """Returns the versions of JAX and its compilers, on which the numbers depend."""
    import importlib.metadata

    installed = {}
    for package in ("jax", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin"):
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def largest_buffers(plan: Plan) -> tuple[Buffer, ...]:
    """Returns the largest buffers at the peak, or () if the memory use is unknown."""
    return plan.memory.largest if plan.memory else ()
