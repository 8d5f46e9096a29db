"""Numbers about what was prepared: how many, how long, how loud, which labels, and which inputs are there together."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.prepare.decide import Decisions
from mmjax.prepare.examined import Examined


def statistics(examined: Examined, splits: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """{split: {"examples", "columns": {column: ...}, "present": {subset: examples}}}, of the rows of each split.

    A column has "present", how many rows have it; "measures", {measure: mean, variance, smallest, median, largest, of
    its rows}, and "categories", {measure: {word: examples}}; and a label "classes", {name: examples}.
    """
    return {split: _of_rows(examined, rows) for split, rows in splits.items()}


def _of_rows(examined: Examined, rows: np.ndarray) -> dict[str, Any]:
    columns = {}
    for column in examined.job.layout.columns:
        present = rows[examined.present[column.name][rows]]
        facts: dict[str, Any] = {"present": len(present)}
        if column.kind == "label":
            facts["classes"] = _counted(examined.classes(column.name), present)
        else:
            numbers = examined.numbers[column.name]
            words = examined.words[column.name]
            facts["categories"] = {name: _counted(values, present) for name, values in words.items()}
            facts["measures"] = {name: spread(values[present]) for name, values in numbers.items() if len(present)}
        columns[column.name] = facts
    inputs = [column.name for column in examined.job.inputs]
    flags = np.stack([examined.present[name][rows] for name in inputs], axis=1)
    subsets = collections.Counter("+".join(np.asarray(inputs)[row].tolist()) for row in flags)
    return {"examples": len(rows), "columns": columns, "present": dict(sorted(subsets.items()))}


def _counted(names: list[str | None], rows: np.ndarray) -> dict[str, int]:
    counts = collections.Counter(name for row in rows if (name := names[row]) is not None)
    return dict(sorted(counts.items()))


def spread(values: np.ndarray) -> dict[str, float]:
    """Of numbers without NaN."""
    values = values[~np.isnan(values)]
    if not len(values):
        return {}
    return {
        "mean": float(values.mean()),
        "variance": float(values.var()),
        "smallest": float(values.min()),
        "median": float(np.median(values)),
        "largest": float(values.max()),
    }


def index_columns(examined: Examined, decisions: Decisions, rows: np.ndarray) -> dict[str, Any]:
    """What a filter, a mixture or a packing plan has to know of each row of a split: a table of columns.

    "key", "group", "fold", and for each column "NAME/present", "NAME/MEASURE" and for labels "NAME".
    """
    table: dict[str, Any] = {
        "key": [examined.keys[row] for row in rows],
        "group": [examined.groups[row] for row in rows],
        "fold": decisions.folds[rows],
    }
    for column in examined.job.layout.columns:
        table[f"{column.name}/present"] = examined.present[column.name][rows]
        for name, words in examined.words[column.name].items():
            measure = column.name if column.kind == "label" else f"{column.name}/{name}"
            table[measure] = [words[row] for row in rows]
        for name, values in examined.numbers[column.name].items():
            table[f"{column.name}/{name}"] = values[rows]
    return table


def sizes(examined: Examined, rows: np.ndarray) -> np.ndarray:
    """About how many bytes the record of each row takes."""
    total = np.full(len(rows), 64.0)
    for column in examined.job.layout.columns:
        if (stored := examined.numbers[column.name].get("bytes")) is not None:
            total += np.nan_to_num(stored[rows])
    return total
