"""Measurements of `benchmarks/step.py`: step time, input time, host overhead, utilisation and memory."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import platform
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from machine import host, percentile
from rich.console import Console

from mmjax.errors import UserError
from mmjax.experiment import Experiment, plain
from mmjax.planning import peak_flops, step_flops
from mmjax.runs.run import train
from mmjax.sharding import format_mesh
from mmjax.training import HOOKS
from mmjax.training.loop import Hook, Loop

# Untimed steps at the start of a series: they use batches that were queued before it.
UNCOUNTED = 8

_COMPILE_EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}


@contextlib.contextmanager
def compile_seconds() -> Iterator[dict[str, float]]:
    """Sums the seconds that JAX spends in the block on tracing, lowering and compiling."""
    seconds = dict.fromkeys(_COMPILE_EVENTS.values(), 0.0)
    listening = True

    def note(event: str, duration: float, **_: Any) -> None:
        if listening and event in _COMPILE_EVENTS:
            seconds[_COMPILE_EVENTS[event]] += duration

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield seconds
    finally:
        listening = False


class _Reached(Exception):
    """Raised after the first step, with the time."""


class _FirstStep(Hook):
    """Ends a run after its first step."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        """No options."""

    def __init__(self, config: Config, history: Any):
        pass

    def after_step(self, loop: Loop) -> None:
        jax.block_until_ready(loop.state)
        raise _Reached(time.time())


def first_step(recipe: Any, workdir: pathlib.Path) -> float:
    """Trains a recipe for one step in an empty folder. Returns the end of the step as `time.time()`."""
    raw = plain(recipe)
    HOOKS["benchmark_first_step"] = _FirstStep
    raw["train"]["hooks"] = [*raw["train"].get("hooks", []), {"kind": "benchmark_first_step"}]
    try:
        train(raw, workdir, Console(quiet=True))
    except _Reached as reached:
        return reached.args[0]
    raise RuntimeError("the run ended before its first step")


def separate_cores(words: Sequence[str]) -> None:
    """Reserves the given cores for the pipeline and the loop, and runs JAX's threads on all others.

    On a CPU a busy pipeline slows down the step even if it never waits for input; separate cores avoid this.

    Raises:
      UserError: if `words` are not indices of a proper subset of the cores that this process may use.
    """
    all_cores = os.sched_getaffinity(0)
    cores = {int(word) for word in words if word.isdecimal()}
    if len(cores) != len(words) or not cores < all_cores:
        problem = f"{','.join(words)} are not some of the cores {','.join(map(str, sorted(all_cores)))}"
        raise UserError("--input_cores", problem, "leave at least one to the step")
    # Threads inherit the cores of the thread that starts them, and JAX starts its threads here.
    os.sched_setaffinity(0, all_cores - cores)
    jax.block_until_ready(jnp.zeros(()) + 1)
    os.sched_setaffinity(0, cores)


class Run:
    """An experiment with its compiled step, its state, and one batch that stays on the devices."""

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self.batches = experiment.train_batches(0)
        self.state = experiment.init_state()
        self.batch = next(self.batches)
        self.step = experiment.compile_step()
        self.state = jax.block_until_ready(self.step(self.state, self.batch))

    def close(self) -> None:
        self.batches.close()

    def series(self, count: int, real: bool) -> tuple[list[float], list[float]]:
        """Runs `count` consecutive steps, as in training.

        The host stays one step ahead of the devices, so that dispatch overlaps with compute.

        Args:
          count: number of timed steps.
          real: use batches from the pipeline instead of one repeated batch.

        Returns:
          (seconds between the ends of consecutive steps, seconds to fetch each batch), without the first `UNCOUNTED`
          steps.
        """
        ends, waits, before = [], [], None
        for _ in range(count + UNCOUNTED + 1):
            start = time.perf_counter()
            batch = next(self.batches) if real else self.batch
            waits.append(time.perf_counter() - start)
            self.state = self.step(self.state, batch)
            # The state itself is donated to the next step, so wait for a copy of one leaf.
            marker = jnp.copy(self.state.data_step)
            if before is not None:
                before.block_until_ready()
                ends.append(time.perf_counter())
            before = marker
        durations = [after - end for end, after in zip(ends, ends[1:], strict=False)]
        return durations[UNCOUNTED - 1 :], waits[UNCOUNTED + 1 :]

    def dispatch(self, count: int) -> list[float]:
        """Returns the seconds of each call of the step, made while the devices are idle."""
        seconds = []
        for _ in range(count):
            jax.block_until_ready(self.state)
            start = time.perf_counter()
            self.state = self.step(self.state, self.batch)
            seconds.append(time.perf_counter() - start)
        return seconds


def steps_and_waiting(run: Run, count: int, in_a_round: int = 20) -> dict[str, float]:
    """Times steps with a repeated batch and with batches from the pipeline, in alternating rounds.

    Args:
      run: experiment to time.
      count: timed steps of each kind.
      in_a_round: timed steps per round.

    Returns:
      With the repeated batch: "step_ms", "step_ms_p90", "examples_per_second". With real batches: "input_ms", the time
      to fetch a batch, and "input_share", its share of a step; both may overlap with compute. "real_over_same": ratio
      of the mean durations, with "_error" (standard error over the rounds), "_low" and "_high" (minimum and maximum).
    """
    rounds = max(4, count // in_a_round)
    same: list[float] = []
    real: list[float] = []
    waits: list[float] = []
    ratios = []
    for _ in range(rounds):
        first, _ = run.series(-(-count // rounds), real=False)
        second, waited = run.series(-(-count // rounds), real=True)
        same, real, waits = same + first, real + second, waits + waited
        ratios.append(statistics.fmean(second) / statistics.fmean(first))
    median = statistics.median(same)
    return {
        "step_ms": median * 1e3,
        "step_ms_p90": percentile(same, 0.9) * 1e3,
        "examples_per_second": run.experiment.config.train.batch_size / median,
        "input_ms": statistics.fmean(waits) * 1e3,
        "input_share": sum(waits) / sum(real),
        "real_over_same": statistics.fmean(real) / statistics.fmean(same),
        "real_over_same_error": statistics.stdev(ratios) / rounds**0.5,
        "real_over_same_low": min(ratios),
        "real_over_same_high": max(ratios),
    }


def overhead_ms(run: Run, count: int) -> tuple[float, float]:
    """Returns the host time of dispatching a step in milliseconds: median and 10th percentile.

    If the CPU is the device, the step's computation can interrupt the call; the 10th percentile excludes this.
    """
    run.dispatch(3)
    seconds = run.dispatch(count)
    return statistics.median(seconds) * 1e3, percentile(seconds, 0.1) * 1e3


def utilisation(experiment: Experiment, step_seconds: float) -> dict[str, Any]:
    """Returns model FLOPs per step, TFLOP/s per device, and the share of the bfloat16 peak; None if unknown."""
    devices, kind = experiment.mesh.size, experiment.mesh.devices.flat[0].device_kind
    try:
        flops = step_flops(experiment)
    except ValueError as error:
        return {"flops": None, "flops_unknown": str(error)}
    peak = peak_flops(kind)
    rate = flops / step_seconds / devices
    share = None if peak is None else rate / peak
    return {"flops": flops, "tflops_per_device": rate / 1e12, "utilisation": share}


def memory(run: Run) -> dict[str, Any]:
    """Returns peak bytes of the devices and of this process, and the memory of the compiled step per device."""
    stats = [device.memory_stats() or {} for device in run.experiment.mesh.local_devices]
    found: dict[str, Any] = {"device_peak_bytes": max((each.get("peak_bytes_in_use", 0) for each in stats), default=0)}
    unit = 1 if sys.platform == "darwin" else 1024
    found["process_peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    analysis = run.step.lower(run.state, run.batch).compile().memory_analysis()
    if analysis is not None:
        parts = analysis.argument_size_in_bytes + analysis.output_size_in_bytes + analysis.temp_size_in_bytes
        found["step_bytes"] = parts - analysis.alias_size_in_bytes
    return found


def machine(experiment: Experiment) -> dict[str, Any]:
    """Returns devices, host, versions and mesh."""
    device = experiment.mesh.devices.flat[0]
    return {
        "device": f"{experiment.mesh.size} x {device.device_kind}",
        "host": host(),
        "versions": f"Python {platform.python_version()}, JAX {jax.__version__}",
        "mesh": format_mesh(dict(experiment.mesh.shape)),
    }
