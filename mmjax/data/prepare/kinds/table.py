"""Tables: several columns of a source as one input, numbers and categories together, with cells that are missing."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.data.prepare.kinds.base import Kind, Unreadable
from mmjax.data.prepare.kinds.label import ordered

MISSING = ("", "na", "n/a", "nan", "null", "none", "?")

Row = dict[str, "float | str"]


class TableKind(Kind):
    """A row of cells; stored as float32, a category by its number, a missing cell as NaN.

    A column is one of numbers if all its cells are, and else one of categories.
    """

    joins = True
    keeps_words = True
    telling = False

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """What only the user knows.

        Attributes:
          categories: columns of numbers that are names, like a postcode.
        """

        categories: tuple[str, ...] = ()

    def decode(self, value: Any) -> Row | None:
        if not isinstance(value, Mapping):
            raise Unreadable(f"{type(value).__name__} is no row of a table")
        row = {name: cell for name, each in value.items() if (cell := _cell(name, each)) is not None}
        return row or None

    def measure(self, raw: Row) -> dict[str, float | int | str]:
        return {"bytes": 4 * len(raw), **raw}

    def summarise(self, numbers: Mapping[str, np.ndarray], words: Mapping[str, list[str | None]]) -> dict[str, Any]:
        """{"columns", "categories": {column: names}}, of all rows that stay.

        Args:
          numbers: {column: float [rows], NaN where there is none}.
          words: {column: [rows] of words, None where there is none}.
        """
        columns = sorted(({*numbers, *words}) - {"bytes"})
        categories = {}
        for name in columns:
            if name in words:
                categories[name] = ordered({word for word in words[name] if word is not None})
            elif name in self.config.categories:
                cells = numbers[name]
                categories[name] = ordered({_name(number) for number in cells[~np.isnan(cells)]})
        return {"columns": columns, "categories": categories}

    def facts(self, summary: Mapping[str, Any], numbers: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Options of the modality; `numbers` are those of the training split."""
        means, deviations = {}, {}
        for name in summary["columns"]:
            cells = numbers.get(name, np.zeros(0))
            cells = cells[~np.isnan(cells)]
            if name not in summary["categories"] and len(cells):
                means[name], deviation = float(cells.mean()), float(cells.std())
                # A constant tells nothing; in other splits it may be none.
                deviations[name] = deviation if deviation > 1e-6 * max(1.0, abs(means[name])) else 1.0
        return {**summary, "means": means, "deviations": deviations}

    def feature(self, tfds: Any, summary: Mapping[str, Any]) -> Any:
        return tfds.features.Tensor(shape=(len(summary["columns"]),), dtype=np.float32, encoding="bytes")

    def stored(self, raw: Row, summary: Mapping[str, Any]) -> np.ndarray:
        cells = np.full(len(summary["columns"]), np.nan, np.float32)
        for place, name in enumerate(summary["columns"]):
            if name in raw and name in summary["categories"]:
                cells[place] = summary["categories"][name].index(_name(raw[name]))
            elif name in raw:
                cells[place] = raw[name]
        return cells

    def placeholder(self, summary: Mapping[str, Any]) -> np.ndarray:
        return np.full(len(summary["columns"]), np.nan, np.float32)

    def show(self, raw: Row) -> str:
        cells = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(_name(cell))}</td></tr>" for name, cell in raw.items()
        )
        return f"<table>{cells}</table>"


def _cell(name: str, value: Any) -> float | str | None:
    if value is None or (isinstance(value, str) and value.strip().lower() in MISSING):
        return None
    if not isinstance(value, str | int | float | np.generic):
        raise Unreadable(f"{name} is a {type(value).__name__}, and no cell of a table")
    try:
        number = float(value)
    except ValueError:
        return str(value).strip()
    if math.isnan(number):
        return None
    if math.isinf(number):
        raise Unreadable(f"{name} = {value!r} is not finite")
    return number


def _name(cell: float | str) -> str:
    return cell if isinstance(cell, str) else f"{cell:g}"
