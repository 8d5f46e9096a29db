"""What will run, before it runs, and what came out, as tables on the console."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
from rich.console import Console
from rich.table import Table


def count(tree: Any) -> int:
    """The number of elements of all arrays of a tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def parts(parameters: Mapping[str, Any]) -> dict[str, int]:
    """{part of the model, as in the config: number of parameters}."""
    found: dict[str, int] = {}
    for name, node in parameters.items():
        if name in ("encoders", "tasks"):
            found |= {f"{name}.{inner}": count(tree) for inner, tree in node.items()}
        else:
            found[f"model.{name}"] = count(node)
    return found


def print_facts(console: Console, title: str, facts: Mapping[str, str]) -> None:
    """Two columns, without lines."""
    # A table's own title is broken to the width of the table.
    console.print(title, style="bold", markup=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for name, value in facts.items():
        table.add_row(name, value)
    console.print(table)


def print_subsets(
    console: Console,
    title: str,
    rows: Mapping[str, Mapping[str, float]],
    ceilings: Mapping[str, Mapping[str, float]],
    metrics: list[str],
) -> None:
    """One row for each subset of the inputs, one column for each metric, beside the best that is possible."""
    table = Table(title=title, title_justify="left", title_style="bold")
    # Cut short, "audio+image" and "audio+image+text" would look the same.
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


def print_metrics(console: Console, title: str, row: Mapping[str, float]) -> None:
    """One line for each metric."""
    print_facts(console, title, {name: f"{value:.4f}" for name, value in row.items()})
