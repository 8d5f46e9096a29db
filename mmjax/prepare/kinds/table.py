"""Tables: several source columns, numeric and categorical, as one input with missing cells."""

from __future__ import annotations

import dataclasses
import hashlib
import html
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.errors import UserError, nearest
from mmjax.modalities.names import canonical_name
from mmjax.modalities.table import parse_cell
from mmjax.prepare.kinds.base import Kind, Numbers, Strings, Unreadable, mean_and_std
from mmjax.prepare.kinds.label import sort_classes

# Prefix of column names among the measurements, to avoid collisions with other measurements.
_CELL = "cell/"

_DIGITS = re.compile(r"\d")
# Rows with fewer digits in their numeric cells may be equal by chance and are not compared.
_MIN_DIGITS = 12
# Maximum number of one-hot features per categorical column.
_MAX_CATEGORIES = 50

Cells = dict[str, "float | str"]


class TableKind(Kind):
    """Table cells, stored as float64: categories as indices, missing cells as NaN.

    A column is numeric if all of its cells are, including those of dropped rows; otherwise it is categorical. Integers
    with a leading zero, such as 01234, or with 16 digits or more are identifiers and count as categories.
    """

    multi_column = True
    keeps_strings = True
    distinctive = False
    duplicates_expected = True

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of the table kind.

        Attributes:
          categories: numeric columns to treat as categorical, such as postcodes.
        """

        categories: tuple[str, ...] = ()

    def decode(self, value: Any) -> Cells | None:
        if not isinstance(value, Mapping):
            raise Unreadable(f"{type(value).__name__} is not a table row")
        try:
            cells = {name: cell for name, raw in value.items() if (cell := parse_cell(name, raw)) is not None}
        except ValueError as error:
            raise Unreadable(str(error)) from None
        return cells or None

    def measure(self, raw: Cells) -> dict[str, float | int | str]:
        return {"bytes": 8 * len(raw), **{f"{_CELL}{name}": cell for name, cell in raw.items()}}

    def signature(self, raw: Cells) -> bytes | None:
        digits = sum(len(_DIGITS.findall(f"{cell:g}")) for cell in raw.values() if not isinstance(cell, str))
        return None if digits < _MIN_DIGITS else json.dumps(sorted(raw.items())).encode()

    def hashes(self, signature: bytes) -> np.ndarray:
        return np.frombuffer(hashlib.blake2b(signature, digest_size=8).digest(), np.uint64)

    def candidates(self, hashes: np.ndarray) -> np.ndarray:
        """Pairs each row with the first row that has the same cells."""
        _, first, inverse = np.unique(hashes[:, 0], return_index=True, return_inverse=True)
        pairs = np.stack([first[inverse], np.arange(len(hashes))], axis=1)
        return pairs[pairs[:, 0] != pairs[:, 1]]

    def similarity(self, a: bytes, b: bytes) -> float:
        return float(a == b)

    def column_features(self, numbers: Numbers, strings: Strings) -> np.ndarray | None:
        """Z-scores clipped to ±5 and missing-value flags of numeric columns, one-hot categories of the others."""
        columns = []
        for name, cells in numbers.items():
            if name.startswith(_CELL):
                valid = ~np.isnan(cells)
                mean, std = mean_and_std(cells) or (0.0, 1.0)
                columns += [np.where(valid, np.clip((cells - mean) / std, -5, 5), 0), ~valid]
        for name, values in strings.items():
            if name.startswith(_CELL):
                categories = np.asarray([value or "" for value in values])
                columns += [categories == category for category in np.unique(categories)[:_MAX_CATEGORIES]]
        if not columns:
            return None
        features = np.stack(columns, axis=1).astype(np.float32)
        return features[:, features.std(axis=0) > 0]

    def summarise(self, numbers: Numbers, strings: Strings) -> dict[str, Any]:
        """Column names and categories of the kept rows: {"columns", "categories": {column: names}}.

        Measurements of cells have the keys "cell/COLUMN".

        Raises:
          UserError: if `categories` names an unknown column.
        """
        columns = sorted(name.removeprefix(_CELL) for name in {*numbers, *strings} if name.startswith(_CELL))
        for name in self.config.categories:
            if name not in columns:
                raise UserError("checks.table.categories", f"no column {name!r}", nearest(name, columns))
        categories = {}
        for name in columns:
            if _CELL + name in strings:
                categories[name] = sort_classes({value for value in strings[_CELL + name] if value is not None})
            elif name in self.config.categories:
                cells = numbers[_CELL + name]
                categories[name] = sort_classes({canonical_name(cell) for cell in cells[~np.isnan(cells)]})
        return {"columns": columns, "categories": categories}

    def dataset_options(self, summary: Mapping[str, Any], numbers: Numbers) -> dict[str, Any]:
        """Columns, categories, and the mean and standard deviation of numeric columns over the training split."""
        means, stds = {}, {}
        for name in summary["columns"]:
            statistics = mean_and_std(numbers.get(_CELL + name, np.zeros(0)))
            if name not in summary["categories"] and statistics is not None:
                means[name], stds[name] = statistics
        return {**summary, "mean": means, "std": stds}

    def tfds_feature(self, tfds: Any, summary: Mapping[str, Any]) -> Any:
        return tfds.features.Tensor(shape=(len(summary["columns"]),), dtype=np.float64, encoding="bytes")

    def stored(self, raw: Cells, summary: Mapping[str, Any]) -> np.ndarray:
        cells = np.full(len(summary["columns"]), np.nan)
        for index, name in enumerate(summary["columns"]):
            if name in raw and name in summary["categories"]:
                cells[index] = summary["categories"][name].index(canonical_name(raw[name]))
            elif name in raw:
                cells[index] = raw[name]
        return cells

    def placeholder(self, summary: Mapping[str, Any]) -> np.ndarray:
        return np.full(len(summary["columns"]), np.nan)

    def show(self, raw: Cells) -> str:
        rows = ((html.escape(name), html.escape(canonical_name(cell))) for name, cell in raw.items())
        cells = "".join(f"<tr><td>{name}</td><td>{cell}</td></tr>" for name, cell in rows)
        return f"<table>{cells}</table>"
