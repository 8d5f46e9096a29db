"""Statistics of a prepared dataset: counts, measures, classes, and combinations of present inputs."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.prepare.decide import Decisions
from mmjax.prepare.examined import Examined
from mmjax.prepare.kinds import KINDS


def statistics(examined: Examined, splits: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Computes statistics of each split.

    Args:
      examined: measurements of all rows.
      splits: {split: row indices}.

    Returns:
      {split: {"examples", "columns": {column: ...}, "present": {"INPUT+INPUT": examples}}}. A column has "present", the
      number of rows with a value. A class target also has "classes", {class: examples}; other columns have
      "measures", {measure: result of `describe`}, and "categories", {measure: {category: examples}}.
    """
    return {split: _split_statistics(examined, rows) for split, rows in splits.items()}


def _split_statistics(examined: Examined, rows: np.ndarray) -> dict[str, Any]:
    columns = {}
    for column in examined.job.layout.columns:
        present = rows[examined.present[column.name][rows]]
        content: dict[str, Any] = {"present": len(present)}
        if (kind := KINDS[column.kind]).has_classes:
            classes = examined.classes(column.name)
            lists = [kind().class_names(each) for row in present if (each := classes[row]) is not None]
            content["classes"] = dict(sorted(collections.Counter(itertools.chain(*lists)).items()))
        else:
            measures, categories = examined.measures[column.name], examined.categories[column.name]
            content["categories"] = {name: _count(values, present) for name, values in categories.items()}
            content["measures"] = {name: describe(values[present]) for name, values in measures.items() if len(present)}
        columns[column.name] = content
    inputs = [column.name for column in examined.job.inputs]
    flags = np.stack([examined.present[name][rows] for name in inputs], axis=1)
    subsets = collections.Counter("+".join(np.asarray(inputs)[row_flags].tolist()) for row_flags in flags)
    return {"examples": len(rows), "columns": columns, "present": dict(sorted(subsets.items()))}


def _count(names: list[str | None], rows: np.ndarray) -> dict[str, int]:
    """Counts the rows of each name, sorted by name."""
    counts = collections.Counter(name for row in rows if (name := names[row]) is not None)
    return dict(sorted(counts.items()))


def describe(values: np.ndarray) -> dict[str, float]:
    """Returns the mean, variance, minimum, median and maximum of values [n], ignoring NaN; {} if all are NaN."""
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
    """Returns the index of a split, which filters, mixtures and packing plans read.

    Args:
      examined: measurements of all rows.
      decisions: decisions about all rows.
      rows: row indices of the split.

    Returns:
      {index column: values [rows]}: "key", "group", "fold", "NAME/present" and "NAME/MEASURE" of each column NAME, and
      "NAME" with the class of a label, or the JSON list of the classes of a multi-label target.
    """
    table: dict[str, Any] = {
        "key": [examined.keys[row] for row in rows],
        "group": [examined.groups[row] for row in rows],
        "fold": decisions.folds[rows],
    }
    for column in examined.job.layout.columns:
        table[f"{column.name}/present"] = examined.present[column.name][rows]
        for name, categories in examined.categories[column.name].items():
            index_name = column.name if KINDS[column.kind].has_classes else f"{column.name}/{name}"
            table[index_name] = [categories[row] for row in rows]
        for name, values in examined.measures[column.name].items():
            table[f"{column.name}/{name}"] = values[rows]
    return table


def record_sizes(examined: Examined, rows: np.ndarray) -> np.ndarray:
    """Estimates the bytes of the record of each row, float64 [rows]."""
    total = np.full(len(rows), 64.0)
    for column in examined.job.layout.columns:
        if (stored := examined.measures[column.name].get("bytes")) is not None:
            total += np.nan_to_num(stored[rows])
    return total
