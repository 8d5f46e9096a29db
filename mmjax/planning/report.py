"""A plan for people."""

from __future__ import annotations

import math
import os

from rich.console import Console
from rich.table import Table

from mmjax.planning.plan import FASTER, SLOWER, Plan, cost, largest
from mmjax.planning.search import Overrides, flags
from mmjax.reporting.overview import print_facts


def print_plan(console: Console, plan: Plan, examples: float | None, price: float | None) -> None:
    """Everything that a plan tells, in four tables."""
    chips = f"{plan.chips:,} chip{'s' * (plan.chips != 1)}"
    if plan.devices != plan.chips:
        chips += f", {plan.devices:,} devices; what follows is for one device"
    print_facts(
        console,
        f"plan of {plan.recipe}",
        {
            "topology": f"{plan.topology}: {chips} ({plan.device})",
            "mesh": " x ".join(f"{axis}={size}" for axis, size in plan.mesh.items()) or "one device",
            "batch": _batch(plan),
            "parameters": f"{plan.parameters:,}",
            "compiled in": f"{plan.compile_seconds:.0f} s with "
            + ", ".join(f"{name} {version}" for name, version in plan.versions.items()),
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
        print_facts(console, f"{examples:g} examples", bill(plan, examples, price))


def _batch(plan: Plan) -> str:
    if plan.examples_per_row == 1:
        return f"{plan.batch_size:,} examples, {plan.batch_size / plan.devices:g} a device"
    examples = plan.examples_per_row * plan.batch_size
    return f"{plan.batch_size:,} slots with {examples:,.1f} examples on average, {examples / plan.devices:.1f} a device"


def print_memory(console: Console, plan: Plan) -> None:
    capacity = "unknown" if plan.capacity_bytes is None else amount(plan.capacity_bytes)
    if plan.fits:
        share = "" if not plan.capacity_bytes else f" ({plan.peak_bytes / plan.capacity_bytes:.0%})"
        verdict = f"fits: {amount(plan.peak_bytes)} of {capacity}{share}"
    else:
        verdict = f"does not fit: {amount(plan.peak_bytes)} of {capacity}, {amount(plan.missing_bytes)} are missing"
    facts = {"peak": verdict}
    if plan.memory is not None:
        memory = plan.memory
        facts |= {
            "parameters": amount(memory.parameters),
            "optimiser": amount(memory.optimizer),
            "batch and rest": amount(memory.batch + memory.other),
            "activations": f"{amount(memory.activations)}, kept for the backward pass",
            "temporaries": amount(memory.temporaries),
            "program": amount(memory.code),
        }
    print_facts(console, "memory of a device", facts)
    for buffer in largest(plan)[:5]:
        place = _short(buffer.location)
        console.print(
            f"  {amount(buffer.bytes):>9}  {buffer.shape}  {buffer.what}  {place}", markup=False, highlight=False
        )


def print_time(console: Console, plan: Plan) -> None:
    if plan.step_seconds is None:
        print_facts(console, "time of a step", {"unknown": plan.time_unknown})
        return
    assert plan.compute_seconds is not None and plan.kernel_seconds is not None
    assert plan.collective_seconds is not None and plan.exposed_seconds is not None
    low, high = plan.step_seconds_range or (math.nan, math.nan)
    cycles = f"{plan.cycles:,} cycles of the compiler" if plan.cycles else "a roofline"
    facts = {
        "model FLOPs": "unknown" if plan.model_flops is None else f"{plan.model_flops:.4g} a device",
        "compute": f"{milliseconds(plan.compute_seconds)}: {cycles}",
        "kernels": f"{milliseconds(plan.kernel_seconds)}: max(FLOPs / peak, bytes / bandwidth)",
        "collectives": f"{milliseconds(plan.collective_seconds)}, of which "
        f"{milliseconds(plan.exposed_seconds)} are not hidden",
        "step": f"{milliseconds(plan.step_seconds)}; measured steps are expected between "
        f"{milliseconds(low)} and {milliseconds(high)}",
        "utilisation": "unknown" if plan.utilisation is None else f"{plan.utilisation:.1%} of the bfloat16 peak",
        "examples/s": f"{plan.examples_per_second:,.0f} on all chips",
    }
    print_facts(console, "time of a step", facts)
    for place, seconds in plan.slowest[:5]:
        console.print(
            f"  {milliseconds(seconds):>10}  {_short(place) or 'of no one place'}", markup=False, soft_wrap=True
        )
    console.print(
        f"  Assumed: links at their full bandwidth, no waiting for input. The range is {FASTER:g} to {SLOWER:g} times "
        "the schedule's time: see experiments/03_plans for how it compares with published runs.",
        style="dim",
        highlight=False,
    )


def print_collectives(console: Console, plan: Plan) -> None:
    if not plan.collectives:
        return
    console.print()
    console.print("collectives of a step", style="bold")
    table = Table(box=None, pad_edge=False, header_style="cyan")
    for name in ("kind", "axis", "hidden"):
        table.add_column(name, overflow="fold")
    for name in ("runs", "bytes", "time", "waited for"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in plan.collectives:
        table.add_row(
            row.kind,
            row.axis,
            "yes" if row.hidden else "no",
            f"{row.runs:,}",
            amount(row.bytes),
            milliseconds(row.seconds),
            milliseconds(row.exposed_seconds),
        )
    console.print(table)


def print_remedy(console: Console, found: tuple[Overrides, Plan] | None) -> None:
    """What makes a step fit that does not."""
    console.print()
    if found is None:
        console.print("No change of rematerialisation, microbatches, mesh or batch makes it fit.", style="bold")
        return
    overrides, plan = found
    capacity = amount(plan.capacity_bytes or 0)
    console.print("This makes it fit; it was compiled:", style="bold")
    console.print(f"  {flags(overrides)}", markup=False, highlight=False, soft_wrap=True)
    step = "" if plan.step_seconds is None else f"; {milliseconds(plan.step_seconds)} a step"
    console.print(f"  peak {amount(plan.peak_bytes)} of {capacity}{step}", highlight=False)


def print_ranking(console: Console, ranking: list[tuple[Overrides, Plan]]) -> None:
    """What a search found, the winner as flags to paste."""
    console.print("searched", style="bold")
    # The changes are long: they come last, and only the terminal breaks them.
    row = "{:>20} {:>11} {:>12} {:>12}  {}"
    console.print(row.format("peak", "step", "utilisation", "examples/s", "change"), soft_wrap=True)
    for overrides, plan in ranking:
        cells = (
            amount(plan.peak_bytes) + ("" if plan.fits else " (too much)"),
            "–" if plan.step_seconds is None else milliseconds(plan.step_seconds),
            "–" if plan.utilisation is None else f"{plan.utilisation:.1%}",
            "–" if plan.examples_per_second is None else f"{plan.examples_per_second:,.0f}",
            " ".join(f"{key}={value}" for key, value in overrides.items()) or "as the recipe says",
        )
        console.print(row.format(*cells), markup=False, soft_wrap=True)
    overrides, plan = ranking[0]
    if plan.fits:
        console.print("The fastest, to paste:", style="bold")
        console.print(f"  {flags(overrides) or 'the recipe as it is'}", markup=False, highlight=False, soft_wrap=True)


def bill(plan: Plan, examples: float, price: float | None) -> dict[str, str]:
    """How long so many examples take, and what they cost."""
    if plan.examples_per_second is None:
        return {"time": "unknown"}
    hours = examples / plan.examples_per_second / 3600
    facts = {"time": f"{hours:,.1f} hours, {hours * plan.chips:,.0f} chip-hours"}
    if price is not None:
        facts["cost"] = f"{cost(plan, examples, price):,.0f} at {price:g} a chip-hour"
    return facts


def amount(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f} ms"


def _short(location: str) -> str:
    """A place in the code, relative to the current folder where it is inside."""
    path, _, line = location.rpartition(":")
    if "site-packages/" in path:
        return location.rpartition("site-packages/")[2]
    return f"{os.path.relpath(path)}:{line}" if path.startswith(os.getcwd() + os.sep) else location
