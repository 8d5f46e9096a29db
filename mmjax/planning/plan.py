"""A plan: the training step of a recipe, compiled for devices that need not be here, and what that tells."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Mapping
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from mmjax.planning.chips import Chip, find_chip
from mmjax.planning.flops import kernel_flops, step_flops
from mmjax.planning.hlo import Module
from mmjax.planning.memory import Buffer, MemoryUse, read_memory
from mmjax.planning.schedule import ProgramSchedule, read_schedule

FASTER = 0.95
"""The published steps that we compared with took 0.98 to 1.06 of their schedules' time (`experiments/03_plans`)."""
SLOWER = 1.3
"""An allowance, not a measurement: for links and clocks below their best, and for what the runtime adds."""


class Planned(Protocol):
    """What a plan asks of an experiment, `mmjax.experiment.Experiment`."""

    config: Any
    mesh: Mesh
    shapes: Any
    objective: Any

    @property
    def abstract_batch(self) -> Any: ...

    @property
    def examples_per_step(self) -> float:
        """The batch size, and fewer on average where examples share rows."""

    def lower_step(self) -> Any:
        """The lowered step, ready to be compiled."""

    def trace_step(self) -> Any:
        """The step as JAX traces it."""


@dataclasses.dataclass(frozen=True)
class Moves:
    """Collectives of one kind over the same mesh axes, hidden behind computation or not, over a whole step.

    Attributes:
      bytes: of the arrays on one chip, over all runs.
      runs: how often such a collective runs.
      seconds: at the links' full bandwidth.
      exposed_seconds: of them, those that the chip waits.
    """

    kind: str
    axis: str
    bytes: int
    hidden: bool
    runs: int
    seconds: float
    exposed_seconds: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a step needs, for one device unless named otherwise.

    Attributes:
      recipe: as the user named it.
      topology: name of the topology, or what the devices call themselves.
      device: kind of the devices.
      devices, chips: of the whole mesh; a TPU7x has two devices a chip.
      mesh: sizes of its axes.
      batch_size: the global one.
      fullness: examples for each slot of it; less than 1 on average where they share rows.
      parameters: of the whole model.
      memory: what fills the memory; None where the compiler gave up before it could tell.
      fits: whether the step fits.
      peak_bytes, capacity_bytes: what it needs and what there is.
      model_flops: by the convention of `mmjax.planning.flops`.
      cycles: the compiler's, with trip counts; None where it gives none.
      compute_seconds, kernel_seconds: of the cycles, and of custom calls beside them.
      collective_seconds, exposed_seconds: of all collectives, and of what the schedule does not hide.
      step_seconds: compute and kernels and what is exposed; None where nothing is known of the device's speed.
      collectives: by kind, axis, and whether they are hidden.
      slowest: ("file.py:line", seconds) of the places in the code that take longest.
      time_unknown: why nothing is said about time, where that is so.
      compile_seconds: how long the compiler took.
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
    step_seconds: float | None = None
    collectives: tuple[Moves, ...] = ()
    slowest: tuple[tuple[str, float], ...] = ()
    examples_per_row: float = 1.0
    time_unknown: str = ""
    compile_seconds: float = 0.0
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def missing_bytes(self) -> int:
        return max(0, self.peak_bytes - (self.capacity_bytes or self.peak_bytes))

    @property
    def step_seconds_range(self) -> tuple[float, float] | None:
        """Where a measured step is expected to lie."""
        return None if self.step_seconds is None else (FASTER * self.step_seconds, SLOWER * self.step_seconds)

    @property
    def utilisation(self) -> float | None:
        """Model FLOPs over what the device could do in the time of a step, at its bfloat16 peak."""
        if self.step_seconds is None or self.model_flops is None or not self.peak_flops:
            return None
        return self.model_flops / self.peak_flops / self.step_seconds

    @property
    def examples_per_second(self) -> float | None:
        """Of all devices."""
        return self.examples_per_row * self.batch_size / self.step_seconds if self.step_seconds else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        fields = dataclasses.asdict(self)
        return fields | {
            "missing_bytes": self.missing_bytes,
            "step_seconds_range": self.step_seconds_range,
            "utilisation": self.utilisation,
            "examples_per_second": self.examples_per_second,
        }


def cost(plan: Plan, examples: float, price: float) -> float | None:
    """What so many examples cost at a price of a chip-hour."""
    rate = plan.examples_per_second
    return None if rate is None else examples / rate / 3600 * plan.chips * price


def make_plan(recipe: str, topology: str, experiment: Planned) -> tuple[Plan, str | None]:
    """Compiles the step of an experiment for the devices of its mesh and reads the program.

    Args:
      recipe: its name, for the record.
      topology: name of the devices together.

    Returns:
      The plan, and the program's text; None where the compiler found that it does not fit.
    """
    mesh = experiment.mesh
    device = mesh.devices.flat[0]
    chip = find_chip(device.device_kind)
    per_chip = chip.per_chip if chip else 1
    known: dict[str, Any] = {
        "recipe": recipe,
        "topology": topology,
        "device": device.device_kind,
        "devices": mesh.size,
        "chips": max(1, mesh.size // per_chip),
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "batch_size": experiment.config.train.batch_size,
        "fullness": experiment.examples_per_step / experiment.config.train.batch_size,
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(experiment.shapes.parameters)),
        "capacity_bytes": chip.memory_bytes if chip else capacity_of(device),
        "peak_flops": chip.peak_flops if chip else None,
        "model_flops": model_flops(experiment),
        "versions": versions(),
    }
    lowered = experiment.lower_step()
    start = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = needed_bytes(str(error))
        if needed is None:
            raise
        known["compile_seconds"] = time.monotonic() - start
        return Plan(fits=False, peak_bytes=needed, **known), None
    known["compile_seconds"] = time.monotonic() - start
    text = compiled.as_text()
    module = Module(text)
    memory = read_memory(module, compiled.memory_analysis(), known["capacity_bytes"] or 0)
    # A TPU's compiler is the judge itself: it refuses what does not fit. Others compile anything.
    judged = device.platform == "tpu" or known["capacity_bytes"] is None
    known |= {"memory": memory, "peak_bytes": memory.peak, "fits": judged or memory.fits}
    if chip is None:
        known["time_unknown"] = f"nothing is known of the speed of {device.device_kind!r}"
    else:
        try:
            known |= timing(read_schedule(module, mesh, chip, kernel_flops(experiment.trace_step().jaxpr)), chip)
        except ValueError as error:
            # A loop that the data ends.
            known["time_unknown"] = str(error)
    return Plan(**known), text


def timing(schedule: ProgramSchedule, chip: Chip) -> dict[str, Any]:
    """The fields of a plan that are about time."""
    grouped: dict[tuple[str, str, bool], list[Any]] = {}
    for moved in schedule.collectives.values():
        axis = "+".join(moved.collective.axes)
        grouped.setdefault((moved.collective.kind, axis, moved.hidden), []).append(moved)
    rows = [
        Moves(
            kind,
            axis,
            sum(moved.bytes for moved in group),
            hidden,
            sum(moved.runs for moved in group),
            sum(moved.seconds for moved in group),
            sum(moved.exposed for moved in group),
        )
        for (kind, axis, hidden), group in grouped.items()
    ]
    return {
        "cycles": schedule.cycles if chip.clock else None,
        "compute_seconds": schedule.compute,
        "kernel_seconds": schedule.kernels,
        "collective_seconds": sum(row.seconds for row in rows),
        "exposed_seconds": schedule.exposed,
        "step_seconds": schedule.seconds,
        "slowest": tuple(sorted(schedule.places.items(), key=lambda item: -item[1])[:10]),
        "collectives": tuple(sorted(rows, key=lambda row: -row.seconds)),
    }


def model_flops(experiment: Planned) -> int | None:
    """Of one step on one device; None where a loop with products has as many rounds as the data decides."""
    try:
        return step_flops(experiment) // experiment.mesh.size
    except ValueError:
        return None


def needed_bytes(message: str) -> int | None:
    """What a program needs in all, from the compiler's message that there is not so much; None for other messages."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    units = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    for pattern in (r"Used ([\d.]+)([KMGT]?) of", r"temporaries \(([\d.]+)([KMGT]?)\)", r"allocate ([\d.]+)([KMGT]?)"):
        match = re.search(pattern, message)
        if match:
            return int(float(match[1]) * units[match[2]])
    return None


def capacity_of(device: jax.Device) -> int | None:
    """What a device that is here says of its memory."""
    try:
        return (device.memory_stats() or {}).get("bytes_limit")
    except jax.errors.JaxRuntimeError:
        return None


def versions() -> dict[str, str]:
    """What the figures depend on."""
    import importlib.metadata

    found = {}
    for package in ("jax", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def largest(plan: Plan) -> tuple[Buffer, ...]:
    return plan.memory.largest if plan.memory else ()
