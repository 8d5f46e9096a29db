"""Console output of plans."""

from __future__ import annotations

import itertools
import math
import os
import re

from rich.console import Console
from rich.table import Table

from mmjax.planning.plan import HIGH_RATIO, LOW_RATIO, KernelSummary, Plan, cost, largest_buffers
from mmjax.planning.search import Overrides, Remedy, as_flags
from mmjax.reporting.overview import print_key_values


def print_plan(console: Console, plan: Plan, examples: float | None, price: float | None) -> None:
    """Prints a plan: overview, memory, time and collectives, and the cost of training on `examples`.

    `price` is per chip-hour.
    """
    chips = f"{plan.chips:,} chip{'s' * (plan.chips != 1)}"
    if plan.devices != plan.chips:
        chips += f", {plan.devices:,} devices; all values are per device"
    print_key_values(
        console,
        f"plan of {plan.recipe}",
        {
            "topology": f"{plan.topology}: {chips} ({plan.device})",
            "mesh": " x ".join(f"{axis}={size}" for axis, size in plan.mesh.items()) or "one device",
            "batch": _batch(plan),
            "parameters": f"{plan.parameters:,}",
            "compiled in": _compilation(plan),
        },
    )
    console.print()
    print_memory(console, plan)
    if plan.memory is not None:
        console.print()
        print_time(console, plan)
        print_collectives(console, plan)
    if examples:
        console.print()
        print_key_values(console, f"{examples:g} examples", duration_and_cost(plan, examples, price))


def _compilation(plan: Plan) -> str:
    if not plan.compiled:
        return "not compiled"
    versions = ", ".join(f"{name} {version}" for name, version in plan.versions.items())
    return f"{plan.compile_seconds:.0f} s with {versions}"


def _batch(plan: Plan) -> str:
    if plan.examples_per_row == 1:
        return f"{plan.batch_size:,} examples, {plan.batch_size / plan.devices:g} per device"
    examples = plan.examples_per_row * plan.batch_size
    per_device = examples / plan.devices
    return f"{plan.batch_size:,} slots with {examples:,.1f} examples on average, {per_device:.1f} per device"


def print_memory(console: Console, plan: Plan) -> None:
    """Prints the peak memory of a device, its parts and the five largest buffers."""
    capacity = "unknown" if plan.capacity_bytes is None else format_bytes(plan.capacity_bytes)
    peak = f"{format_bytes(plan.peak_bytes)} of {capacity}"
    if plan.fits:
        share = "" if not plan.capacity_bytes else f" ({plan.peak_bytes / plan.capacity_bytes:.0%})"
        verdict = f"fits: {peak}{share}"
    else:
        prefix = "" if plan.compiled else "at least "
        verdict = f"does not fit: {prefix}{peak}, {prefix}{format_bytes(plan.missing_bytes)} too much"
    values = {"peak": verdict}
    if plan.bound is not None:
        bound = plan.bound
        values |= {
            "parameters": format_bytes(bound.parameters),
            "optimiser": format_bytes(bound.optimizer),
            "batch": format_bytes(bound.batch),
            "activations": f"at least {format_bytes(bound.activations)} with full rematerialisation",
        }
    if plan.memory is not None:
        memory = plan.memory
        values |= {
            "parameters": format_bytes(memory.parameters),
            "optimiser": format_bytes(memory.optimizer),
            "batch and other": format_bytes(memory.batch + memory.other),
            "activations": f"{format_bytes(memory.activations)}, kept for the backward pass",
            "temporaries": format_bytes(memory.temporaries),
            "program": format_bytes(memory.code),
        }
    print_key_values(console, "memory per device", values)
    for buffer in largest_buffers(plan)[:5]:
        line = f"  {format_bytes(buffer.bytes):>9}  {buffer.shape}  {buffer.what}  {_short(buffer.location)}"
        console.print(line, markup=False, highlight=False)


def print_time(console: Console, plan: Plan) -> None:
    """Prints the step time, its parts and the five slowest source lines."""
    if plan.step_seconds is None:
        print_key_values(console, "step time", {"unknown": plan.time_unknown})
        return
    assert plan.compute_seconds is not None and plan.kernel_seconds is not None
    assert plan.collective_seconds is not None and plan.exposed_seconds is not None
    low, high = plan.step_seconds_range or (math.nan, math.nan)
    source = f"{plan.cycles:,} cycles, estimated by the compiler" if plan.cycles else "roofline estimate"
    values = {
        "model FLOPs": "unknown" if plan.model_flops is None else f"{plan.model_flops:.4g} per device",
        "compute": f"{format_ms(plan.compute_seconds)}: {source}",
        "kernels": f"{format_ms(plan.kernel_seconds)}{_kernel_sources(plan)}",
        "collectives": f"{format_ms(plan.collective_seconds)}, of which {format_ms(plan.exposed_seconds)} exposed",
        "prefetches": "unknown"
        if plan.prefetch_seconds is None
        else f"{format_ms(plan.prefetch_seconds)} exposed: HBM to VMEM, limited by the instructions' own HBM traffic",
        "step": f"{format_ms(plan.step_seconds)}; expected when measured: {format_ms(low)} to {format_ms(high)}",
        "utilisation": "unknown" if plan.utilisation is None else f"{plan.utilisation:.1%} of the bfloat16 peak",
        "examples/s": f"{plan.examples_per_second:,.0f} on all chips",
    }
    print_key_values(console, "step time", values)
    for kernel in plan.kernels:
        console.print("  " + kernel_line(kernel), markup=False, highlight=False, soft_wrap=True)
    for location, seconds in plan.slowest[:5]:
        line = f"  {format_ms(seconds):>10}  {_short(location) or 'unknown location'}"
        console.print(line, markup=False, soft_wrap=True)
    console.print(
        f"  Assumes no input stalls. The range is {LOW_RATIO:g} to {HIGH_RATIO:g} times "
        "the simulated time; experiments/03_plans compares it with published runs.",
        style="dim",
        highlight=False,
    )


def _kernel_sources(plan: Plan) -> str:
    sources = {kernel.source for kernel in plan.kernels}
    meanings = {
        "static": "static cycles of the compiler",
        "bandwidth": "bytes / bandwidth",
        "roofline": "max(FLOPs / peak, bytes / bandwidth)",
    }
    used = [meaning for source, meaning in meanings.items() if source in sources]
    return ": " + ", ".join(used) if used else ""


def kernel_line(kernel: KernelSummary) -> str:
    """Formats a kernel as one line: runs, time of one call and its source, name and operand types."""
    roofline = f"roofline {format_us(kernel.roofline_seconds)}"
    if kernel.source == "roofline":
        source = "roofline, a lower bound: no static estimate"
    elif kernel.source == "bandwidth":
        source = f"bytes / bandwidth, static {format_us(kernel.static_seconds or 0)}"
    else:
        source = f"static, {roofline}"
    if kernel.uncertain:
        source += f", executed bundles {format_us(kernel.bundle_seconds or 0)}: uncertain"
    return f"{kernel.runs:,} x {format_us(kernel.seconds)} ({source})  {kernel.name}({_operands(kernel)})"


def _operands(kernel: KernelSummary) -> str:
    """Formats the operand types; equal neighbours as "3 x bf16[8,128]"."""
    types = re.findall(r"\w+\[[^\]]*\]", kernel.shapes.partition(" -> ")[0])
    groups = [(name, len(list(group))) for name, group in itertools.groupby(types)]
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in groups)


def print_collectives(console: Console, plan: Plan) -> None:
    """Prints a table of the collectives, grouped by kind, mesh axes and hidden."""
    if not plan.collectives:
        return
    console.print()
    console.print("collectives per step", style="bold")
    table = Table(box=None, pad_edge=False, header_style="cyan")
    for name in ("kind", "axis", "hidden"):
        table.add_column(name, overflow="fold")
    for name in ("runs", "bytes", "time", "exposed"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in plan.collectives:
        table.add_row(
            row.kind,
            row.axis,
            "yes" if row.hidden else "no",
            f"{row.runs:,}",
            format_bytes(row.bytes),
            format_ms(row.seconds),
            format_ms(row.exposed_seconds),
        )
    console.print(table)


def print_remedy(console: Console, remedy: Remedy, minutes: float) -> None:
    """Prints the overrides that make a step fit in memory, with their peak memory and step time."""
    compiled = sum(trial.peak_bytes is not None for trial in remedy.trials)
    if compiled:
        tried = f"{compiled} change{'s' * (compiled != 1)} compiled, none fits"
    else:
        ruled_out = not remedy.trials and not remedy.timed_out
        tried = "none is expected to fit by its shapes" if ruled_out else "no change was compiled"
    console.print()
    if remedy.overrides is None:
        within = "" if not remedy.timed_out else f" within {minutes:g} minutes (--remedy_minutes)"
        message = (
            f"No change of mesh, rematerialisation, microbatches or batch size was found that fits{within}: {tried}."
        )
        console.print(message, style="bold", highlight=False, soft_wrap=True)
        return
    if remedy.plan is None:
        message = (
            f"Within {minutes:g} minutes (--remedy_minutes), {tried}. Expected to fit by its shapes, but not compiled:"
        )
    else:
        message = "The step fits (compiled) with:"
    console.print(message, style="bold", highlight=False, soft_wrap=True)
    console.print(f"  {as_flags(remedy.overrides)}", markup=False, highlight=False, soft_wrap=True)
    if remedy.plan is not None:
        plan = remedy.plan
        at_least = "at least " if any(kernel.source == "roofline" for kernel in plan.kernels) else ""
        step = "" if plan.step_seconds is None else f"; {at_least}{format_ms(plan.step_seconds)} per step"
        capacity = format_bytes(plan.capacity_bytes or 0)
        console.print(f"  peak {format_bytes(plan.peak_bytes)} of {capacity}{step}", highlight=False)


def print_ranking(console: Console, ranking: list[tuple[Overrides, Plan]]) -> None:
    """Prints all candidates of a search, best first, and the flags of the best one."""
    console.print("search results", style="bold")
    # Print the change last and without wrapping by rich, as it may be long.
    row = "{:>20} {:>11} {:>12} {:>12}  {}"
    console.print(row.format("peak", "step", "utilisation", "examples/s", "change"), soft_wrap=True)
    for overrides, plan in ranking:
        cells = (
            format_bytes(plan.peak_bytes) + ("" if plan.fits else " (OOM)"),
            "–" if plan.step_seconds is None else format_ms(plan.step_seconds),
            "–" if plan.utilisation is None else f"{plan.utilisation:.1%}",
            "–" if plan.examples_per_second is None else f"{plan.examples_per_second:,.0f}",
            " ".join(f"{key}={value}" for key, value in overrides.items()) or "unchanged recipe",
        )
        console.print(row.format(*cells), markup=False, soft_wrap=True)
    overrides, plan = ranking[0]
    if plan.fits:
        console.print("Fastest settings:", style="bold")
        settings = as_flags(overrides) or "unchanged recipe"
        console.print(f"  {settings}", markup=False, highlight=False, soft_wrap=True)


def duration_and_cost(plan: Plan, examples: float, price: float | None) -> dict[str, str]:
    """Formats the time for training on `examples` and its cost at `price` per chip-hour."""
    if plan.examples_per_second is None:
        return {"time": "unknown"}
    hours = examples / plan.examples_per_second / 3600
    values = {"time": f"{hours:,.1f} hours, {hours * plan.chips:,.0f} chip-hours"}
    if price is not None:
        values["cost"] = f"{cost(plan, examples, price):,.0f} at {price:g} per chip-hour"
    return values


def format_bytes(count: int) -> str:
    """Formats a number of bytes, like "1.50 GiB"."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


def format_ms(seconds: float) -> str:
    """Formats seconds, like "1.50 ms"."""
    return f"{seconds * 1e3:,.2f} ms"


def format_us(seconds: float) -> str:
    """Formats seconds, like "189.3 us"."""
    return f"{seconds * 1e6:,.1f} us"


def _short(location: str) -> str:
    """Shortens a source location: relative to site-packages or to the current directory."""
    path, _, line = location.rpartition(":")
    if "site-packages/" in path:
        return location.rpartition("site-packages/")[2]
    return f"{os.path.relpath(path)}:{line}" if path.startswith(os.getcwd() + os.sep) else location
