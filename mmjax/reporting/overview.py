"""Console tables: run overview, metrics, and metrics by input subset."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
from rich.console import Console
from rich.table import Table


def count_elements(tree: Any) -> int:
    """Returns the total number of array elements of a pytree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def count_by_component(parameters: Mapping[str, Any]) -> dict[str, int]:
    """Returns {config key of a model component: number of parameters}."""
    counts: dict[str, int] = {}
    for name, node in parameters.items():
        if name in ("encoders", "tasks"):
            counts |= {f"{name}.{child}": count_elements(tree) for child, tree in node.items()}
        else:
            counts[f"model.{name}"] = count_elements(node)
    return counts


def print_key_values(console: Console, title: str, values: Mapping[str, str]) -> None:
    """Prints a title and a table of two columns without borders."""
    # Print the title separately, because `Table` would wrap it to the width of the table.
    console.print(title, style="bold", markup=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for name, value in values.items():
        table.add_row(name, value)
    console.print(table)


def print_subsets(
    console: Console,
    title: str,
    rows: Mapping[str, Mapping[str, float]],
    ceilings: Mapping[str, Mapping[str, float]],
    metrics: list[str],
) -> None:
    """Prints one row per input subset and one column per metric, with its ceiling.

    Args:
      console: console to print to.
      title: title of the table.
      rows: {subset: {metric: value}}.
      ceilings: {metric: {subset: best possible value}}, for metrics with a known ceiling.
      metrics: metrics to show.
    """
    table = Table(title=title, title_justify="left", title_style="bold")
    # Truncated names would be ambiguous, like "audio+image" and "audio+image+text".
    table.add_column("inputs", no_wrap=True, min_width=max(map(len, rows)))
    for metric in metrics:
        table.add_column(metric.replace("/", "\n"), justify="right")
        if metric in ceilings:
            table.add_column("best\npossible", justify="right", style="dim")
    for subset, row in rows.items():
        cells = [subset]
        for metric in metrics:
            cells.append(f"{row[metric]:.4f}" if metric in row else "–")
            if metric in ceilings:
                cells.append(f"{ceilings[metric][subset]:.4f}")
        table.add_row(*cells)
    console.print(table)


def print_ledger(console: Console, ledger: Mapping[str, Any]) -> None:
    """Prints the seconds and the share of each part of a run's wall time; see `mmjax.training.ledger`."""
    starts = f"{ledger['starts']} start" + ("s" if ledger["starts"] > 1 else "")
    rows = {
        name + (" (start-up and the rest)" if name == "other" else ""): f"{seconds:9,.1f} s {share:6.1f} %"
        for (name, seconds), share in zip(ledger["seconds"].items(), ledger["percent"].values(), strict=True)
        if seconds
    }
    print_key_values(console, f"wall time: {ledger['total_seconds']:,.1f} s in {starts}", rows)


def print_metrics(console: Console, title: str, row: Mapping[str, float]) -> None:
    """Prints one line per metric."""
    print_key_values(console, title, {name: f"{value:.4f}" for name, value in row.items()})
