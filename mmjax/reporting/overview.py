"""Console tables: run overview, metrics, and metrics by input subset."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Widths in characters: border and padding of a column, longest line of a metric's heading, narrowest column of names.
_BORDER, _HEADING, _MIN_WIDTH = 3, 10, 8


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
    """Prints a title and a table of two columns without borders, one line per key.

    Long values, such as paths, are neither wrapped nor truncated, so that they can be copied.
    """
    console.print(title, style="bold", markup=False, soft_wrap=True)
    width = max(map(len, values), default=0)
    for name, value in values.items():
        console.print(Text.assemble((f"{name:{width}}", "cyan"), "  ", value), soft_wrap=True, highlight=False)


def print_subsets(
    console: Console,
    title: str,
    rows: Mapping[str, Mapping[str, float]],
    ceilings: Mapping[str, Mapping[str, float]],
    metrics: list[str],
) -> None:
    """Prints one row per input subset and one column per metric, with its ceiling.

    Names are never truncated, because their ends may be all that distinguishes them: long names are wrapped, and
    metrics beyond the width of the console get a table of their own.

    Args:
      console: console to print to.
      title: title of the table.
      rows: {subset: {metric: value}}.
      ceilings: {metric: {subset: best possible value}}, for metrics with a known ceiling.
      metrics: metrics to show.
    """
    names = ["inputs", *(wrap_name(subset, max(_MIN_WIDTH, console.width // 2 - _BORDER), "+") for subset in rows)]
    available = console.width - 1 - _width("\n".join(names))
    columns: list[tuple[str, str, list[str]]] = []  # (heading, style, cells)
    for metric in metrics:
        heading = "\n".join(wrap_name(part, _HEADING, "_") for part in metric.split("/"))
        columns.append((heading, "", [f"{row[metric]:.4f}" if metric in row else "–" for row in rows.values()]))
        if metric in ceilings:
            columns.append(("best\npossible", "dim", [f"{ceilings[metric][subset]:.4f}" for subset in rows]))
    while True:
        # At least one column in each table, so that a narrow console ends the loop, too.
        count, used = 0, 0
        for heading, _, cells in columns:
            used += _width("\n".join([heading, *cells]))
            if count and used > available:
                break
            count += 1
        table = Table(title=title, title_justify="left", title_style="bold")
        table.add_column(names[0], no_wrap=True)
        for heading, style, _ in columns[:count]:
            table.add_column(heading, justify="right", style=style, no_wrap=True)
        for row_cells in zip(names[1:], *(cells for _, _, cells in columns[:count]), strict=True):
            table.add_row(*row_cells)
        console.print(table)
        columns = columns[count:]
        if not columns:
            return
        title = ""


def _width(text: str) -> int:
    """Width of a column of these lines, with its border."""
    return max(map(len, text.split("\n"))) + _BORDER


def wrap_name(name: str, width: int, separator: str) -> str:
    """Breaks a name into lines of at most `width` characters, after separators where possible, without losing any."""
    lines = [""]
    for part in re.findall(rf".*?{re.escape(separator)}|.+$", name):
        if len(lines[-1]) + len(part) > width and lines[-1]:
            lines.append("")
        while len(lines[-1]) + len(part) > width:
            lines[-1], part = part[:width], part[width:]
            lines.append("")
        lines[-1] += part
    return "\n".join(line for line in lines if line)


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
