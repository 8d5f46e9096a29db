"""Tables: several columns of a source as one input, numbers and categories together, with cells that are missing."""

from __future__ import annotations

import dataclasses
import hashlib
import html
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.errors import UserError, nearest
from mmjax.modalities.table import is_missing
from mmjax.prepare.kinds.base import Kind, Unreadable, name_of, standard
from mmjax.prepare.kinds.label import ordered

# Before the name of a column among what is measured, where it could be that of something else.
_CELL = "cell/"

# Digits that are no quantity: codes keep their zeros, and float64 would change the last of sixteen digits.
_NAME = re.compile(r"-?(0\d+|\d{16,})")

_DIGITS = re.compile(r"\d")
# Rows with so many digits that are all the same are copies.
_TELLING = 12
_MOST_FLAGS = 50

Row = dict[str, "float | str"]


class TableKind(Kind):
    """A row of cells; stored as float32, a category by its number, a missing cell as NaN.

    A column is one of numbers if all its cells are, those of rows that are dropped too, and else one of categories.
    Digits that begin with a zero, such as 01234, are a name, and so are more digits than a number can hold.
    """

    multi_column = True
    keeps_words = True
    distinctive = False
    duplicates_expected = True

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
        return {"bytes": 4 * len(raw), **{f"{_CELL}{name}": cell for name, cell in raw.items()}}

    def signature(self, raw: Row) -> bytes | None:
        # Rows of few short cells may well be the same by chance.
        digits = sum(len(_DIGITS.findall(f"{cell:g}")) for cell in raw.values() if not isinstance(cell, str))
        return None if digits < _TELLING else json.dumps(sorted(raw.items())).encode()

    def hashes(self, signature: bytes) -> np.ndarray:
        return np.frombuffer(hashlib.blake2b(signature, digest_size=8).digest(), np.uint64)

    def candidates(self, hashes: np.ndarray) -> np.ndarray:
        """Each row with the first that has the same cells."""
        _, first, which = np.unique(hashes[:, 0], return_index=True, return_inverse=True)
        pairs = np.stack([first[which], np.arange(len(hashes))], axis=1)
        return pairs[pairs[:, 0] != pairs[:, 1]]

    def similarity(self, one: bytes, other: bytes) -> float:
        return float(one == other)

    def described(self, numbers: Mapping[str, np.ndarray], words: Mapping[str, list[str | None]]) -> np.ndarray | None:
        """Numbers on one scale, a flag for each category, and one for each cell that may be missing."""
        found = []
        for name, cells in numbers.items():
            if name.startswith(_CELL):
                there = ~np.isnan(cells)
                mean, deviation = standard(cells) or (0.0, 1.0)
                # A value far off is one that is far off, however far.
                found += [np.where(there, np.clip((cells - mean) / deviation, -5, 5), 0), ~there]
        for name, categories in words.items():
            if name.startswith(_CELL):
                each = np.asarray([word or "" for word in categories])
                found += [each == word for word in np.unique(each)[:_MOST_FLAGS]]
        if not found:
            return None
        columns = np.stack(found, axis=1).astype(np.float32)
        return columns[:, columns.std(axis=0) > 0]

    def summarise(self, numbers: Mapping[str, np.ndarray], words: Mapping[str, list[str | None]]) -> dict[str, Any]:
        """{"columns", "categories": {column: names}}, of all rows that stay.

        Args:
          numbers: {"cell/COLUMN": float [rows], NaN where there is none}.
          words: {"cell/COLUMN": [rows] of words, None where there is none}.

        Raises:
          UserError: if a column is to be one of categories that there is not.
        """
        columns = sorted(name.removeprefix(_CELL) for name in {*numbers, *words} if name.startswith(_CELL))
        for name in self.config.categories:
            if name not in columns:
                raise UserError("checks.table.categories", f"there is no column {name!r}", nearest(name, columns))
        categories = {}
        for name in columns:
            if _CELL + name in words:
                categories[name] = ordered({word for word in words[_CELL + name] if word is not None})
            elif name in self.config.categories:
                cells = numbers[_CELL + name]
                categories[name] = ordered({name_of(number) for number in cells[~np.isnan(cells)]})
        return {"columns": columns, "categories": categories}

    def dataset_options(self, summary: Mapping[str, Any], numbers: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Options of the modality; `numbers` are those of the training split."""
        means, deviations = {}, {}
        for name in summary["columns"]:
            found = standard(numbers.get(_CELL + name, np.zeros(0)))
            if name not in summary["categories"] and found is not None:
                means[name], deviations[name] = found
        return {**summary, "mean": means, "std": deviations}

    def feature(self, tfds: Any, summary: Mapping[str, Any]) -> Any:
        return tfds.features.Tensor(shape=(len(summary["columns"]),), dtype=np.float32, encoding="bytes")

    def stored(self, raw: Row, summary: Mapping[str, Any]) -> np.ndarray:
        cells = np.full(len(summary["columns"]), np.nan, np.float32)
        for place, name in enumerate(summary["columns"]):
            if name in raw and name in summary["categories"]:
                cells[place] = summary["categories"][name].index(_spelt(raw[name]))
            elif name in raw:
                cells[place] = raw[name]
        return cells

    def placeholder(self, summary: Mapping[str, Any]) -> np.ndarray:
        return np.full(len(summary["columns"]), np.nan, np.float32)

    def show(self, raw: Row) -> str:
        cells = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(_spelt(cell))}</td></tr>" for name, cell in raw.items()
        )
        return f"<table>{cells}</table>"


def _cell(name: str, value: Any) -> float | str | None:
    if value is None or is_missing(value):
        return None
    if not isinstance(value, str | int | float | np.generic):
        raise Unreadable(f"{name} is a {type(value).__name__}, and no cell of a table")
    if _NAME.fullmatch(str(value).strip()):
        return str(value).strip()
    try:
        # Python would take 1_000 for a number, and nobody else would.
        number = float("_" if "_" in str(value) else value)
    except ValueError:
        return str(value).strip()
    if math.isnan(number):
        return None
    if math.isinf(number):
        raise Unreadable(f"{name} = {value!r} is not finite")
    return number


def _spelt(cell: float | str) -> str:
    return cell if isinstance(cell, str) else name_of(cell)
