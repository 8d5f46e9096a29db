"""What `benchmarks/step.py` measures, each as a function of an experiment and what it runs."""

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

# The steps at the beginning of a series that do not count: they find queues that were filled before it.
UNCOUNTED = 8

_COMPILE_EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}


@contextlib.contextmanager
def compile_seconds() -> Iterator[dict[str, float]]:
    """Adds up what JAX spends until the end of the block on tracing, lowering and compiling all programs."""
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
    """The first step is done."""


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
    """Trains a recipe in an empty folder until its first step is done, and returns when that was, as `time.time()`."""
    raw = plain(recipe)
    HOOKS["benchmark_first_step"] = _FirstStep
    raw["train"]["hooks"] = [*raw["train"].get("hooks", []), {"kind": "benchmark_first_step"}]
    try:
        train(raw, workdir, Console(quiet=True))
    except _Reached as reached:
        return reached.args[0]
    raise RuntimeError("the run ended before its first step")


def part_cores(words: Sequence[str]) -> None:
    """Leaves the cores of these numbers to the pipeline and the loop, and gives JAX's threads all others.

    On a CPU a step takes longer beside a busy pipeline though it waits for nothing; what remains then is the waiting.

    Raises:
      UserError: if these are not some of the cores that this process may use.
    """
    all_cores = os.sched_getaffinity(0)
    cores = {int(word) for word in words if word.isdecimal()}
    if len(cores) != len(words) or not cores < all_cores:
        problem = f"{','.join(words)} are not some of the cores {','.join(map(str, sorted(all_cores)))}"
        raise UserError("--input_cores", problem, "leave at least one to the step")
    # A thread has the cores of the thread that started it, and JAX starts its threads now.
    os.sched_setaffinity(0, all_cores - cores)
    jax.block_until_ready(jnp.zeros(()) + 1)
    os.sched_setaffinity(0, cores)


class Run:
    """An experiment with a state that its step has been compiled for, and one batch that stays on the devices."""

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
        """Makes `count` steps one behind the other, as training does.

        The host stays one step ahead of the devices, so that neither waits for the other's turn to come.

        Args:
          real: whether to take batches from the pipeline, or the same one again.

        Returns:
          (seconds from the end of one step to the end of the next, seconds that the host waited for its batch), without
          the first `UNCOUNTED` steps.
        """
        ends, waits, before = [], [], None
        for _ in range(count + UNCOUNTED + 1):
            start = time.perf_counter()
            batch = next(self.batches) if real else self.batch
            waits.append(time.perf_counter() - start)
            self.state = self.step(self.state, batch)
            # The state itself is given to the next step before its end.
            marker = jnp.copy(self.state.data_step)
            if before is not None:
                before.block_until_ready()
                ends.append(time.perf_counter())
            before = marker
        durations = [after - end for end, after in zip(ends, ends[1:], strict=False)]
        return durations[UNCOUNTED - 1 :], waits[UNCOUNTED + 1 :]

    def dispatch(self, count: int) -> list[float]:
        """Seconds of each call of the step, made when the devices have nothing left to do."""
        seconds = []
        for _ in range(count):
            jax.block_until_ready(self.state)
            start = time.perf_counter()
            self.state = self.step(self.state, self.batch)
            seconds.append(time.perf_counter() - start)
        return seconds


def steps_and_waiting(run: Run, count: int, in_a_round: int = 20) -> dict[str, float]:
    """Times steps with the same batch and with batches from the pipeline, in turns, so that both see the same machine.

    Args:
      count: timed steps of each.

    Returns:
      "step_ms" and "step_ms_p90" with the same batch, "examples_per_second"; "input_ms", and its share "input_share" of
      a step, in which the host waited for its batch, which the devices need not notice; and "real_over_same", the ratio
      of the mean durations, with its standard error over the rounds, and the lowest and the highest of them.
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
    """The milliseconds that a call of the step takes the host: their median and their 10th percentile.

    A CPU that is its own device interrupts the call to begin with the step's work; the second figure is without that.
    """
    run.dispatch(3)
    seconds = run.dispatch(count)
    return statistics.median(seconds) * 1e3, percentile(seconds, 0.1) * 1e3


def utilisation(experiment: Experiment, step_seconds: float) -> dict[str, Any]:
    """The model's FLOPs of a step, what the devices made of them, and the share of their bfloat16 peak where known."""
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
    """Peak bytes: of a device as it says itself, or of this process; and what the compiled step asks a device for."""
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
    """What all figures depend on."""
    device = experiment.mesh.devices.flat[0]
    return {
        "device": f"{experiment.mesh.size} x {device.device_kind}",
        "host": host(),
        "versions": f"Python {platform.python_version()}, JAX {jax.__version__}",
        "mesh": format_mesh(dict(experiment.mesh.shape)),
    }
