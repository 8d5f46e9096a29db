"""Table modality: standardises numbers and encodes categories as indices, with a mask for missing cells."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np

from mmjax.config import Formerly
from mmjax.errors import UserError, nearest
from mmjax.modalities.names import canonical_name
from mmjax.tokens import InputSpec

MISSING = ("", "na", "n/a", "nan", "null", "none", "?")
"""Strings for a missing cell, in lower case."""


# Digits that are an identifier, not a quantity: with a leading zero, or 16 or more, which float64 would round.
_NAME = re.compile(r"-?(0\d+|\d{16,})")


def is_missing(cell: Any) -> bool:
    """Returns True for a string in `MISSING`, ignoring case and surrounding spaces."""
    return isinstance(cell, str) and cell.strip().lower() in MISSING


def is_number(text: str) -> bool:
    """Returns True if `float` accepts the text."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def parse_cell(name: str, value: Any) -> float | str | None:
    """Parses a cell of a file or of the command line to a number or category; None if missing.

    Digits with a leading zero, such as 01234, and 16 or more digits are identifiers, so they become categories.

    Args:
      name: column name, for messages.
      value: the cell.

    Raises:
      ValueError: if the value has an unsupported type or is infinite.
    """
    if value is None or is_missing(value):
        return None
    if not isinstance(value, str | int | float | np.generic):
        raise ValueError(f"{name} is a {type(value).__name__}, not a table cell")
    if _NAME.fullmatch(str(value).strip()):
        return canonical_name(value)
    try:
        # Python's float() accepts 1_000; other programs do not.
        number = float("_" if "_" in str(value) else value)
    except ValueError:
        return canonical_name(value)
    if math.isnan(number):
        return None
    if math.isinf(number):
        raise ValueError(f"{name} = {value!r} is not finite")
    return number


class Table:
    """Converts table rows to arrays: standardised numbers, category indices, and a mask that is False at missing cells.

    Raw data is float [columns] in the order of `columns`, with category indices for categorical columns and NaN for
    missing cells; or {column: number or category}, where omitted columns are missing.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `Table`. A prepared dataset provides all but `largest`, from its training split.

        Attributes:
          columns: column names.
          categories: {column: names of its categories}; all other columns are numeric.
          mean: {column: mean} for standardising numeric columns; 0 by default.
          std: {column: standard deviation} for standardising numeric columns; 1 by default.
          largest: clips standardised numbers to [-largest, largest], which bounds the effect of outliers.
        """

        columns: tuple[str, ...]
        categories: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
        mean: Annotated[dict[str, float], Formerly("means")] = dataclasses.field(default_factory=dict)
        std: Annotated[dict[str, float], Formerly("deviations")] = dataclasses.field(default_factory=dict)
        largest: float = 10.0

        def __post_init__(self):
            if not self.columns or len(set(self.columns)) < len(self.columns):
                raise ValueError(f"columns = {self.columns} is empty or has duplicates; name each column once")
            for option in ("categories", "mean", "std"):
                for name in getattr(self, option):
                    if name not in self.columns:
                        raise ValueError(f"{option} has an unknown column {name!r}; {nearest(name, self.columns)}")
            if not min((*self.std.values(), self.largest)) > 0:
                raise ValueError("std or largest has a value that is not positive; give values above 0")

    def __init__(self, config: Config):
        self.config = config
        self._category_indices = {
            column: {name: float(index) for index, name in enumerate(names)}
            for column, names in config.categories.items()
        }
        self._mean = np.array([config.mean.get(name, 0.0) for name in config.columns])
        self._std = np.array([config.std.get(name, 1.0) for name in config.columns])
        self._num_categories = np.array([len(config.categories.get(name, ())) for name in config.columns])

    @property
    def spec(self) -> InputSpec:
        """[columns] float32, with a mask per column. `details["categories"]` has the category counts, 0 if numeric."""
        details = {"categories": tuple(self._num_categories.tolist())}
        return InputSpec((len(self.config.columns),), "float32", mask_rank=1, details=details)

    def process(self, raw: Any) -> tuple[np.ndarray, np.ndarray]:
        """Converts a row to (values [columns] float32, mask [columns] bool).

        Raises:
          ValueError: if the row has a wrong number of cells, an unknown category, or an infinite value.
        """
        cells = self._cells(raw) if isinstance(raw, Mapping) else np.asarray(raw, np.float64)
        if cells.shape != self._mean.shape:
            raise ValueError(f"a row must have shape [{len(self._mean)}], not {list(cells.shape)}")
        mask = ~np.isnan(cells)
        filled = np.where(mask, cells, 0.0)
        if not np.isfinite(filled).all():
            raise ValueError("a cell is infinite")
        categorical = self._num_categories > 0
        if (categorical & ((filled < 0) | (filled >= self._num_categories) | (filled % 1 != 0))).any():
            raise ValueError("a category index is out of range")
        numbers = np.clip((filled - self._mean) / self._std, -self.config.largest, self.config.largest)
        return np.where(mask, np.where(categorical, filled, numbers), 0.0).astype(np.float32), mask

    def read(self, argument: str, where: str) -> np.ndarray:
        """Parses a row such as "age=41,colour=red"; omitted columns are missing.

        Returns:
          float64 [columns], as raw data of `process`.

        Raises:
          UserError: if the syntax is wrong, a column or category is unknown, or a value is not a finite number.
        """
        row: dict[str, str] = {}
        # Split only at commas that precede "name=", so that categories may contain commas.
        for part in re.split(r",(?=[^,=]*=)", argument):
            name, equals, value = (field.strip() for field in part.partition("="))
            if not equals:
                raise UserError(where, f"{part!r} has no value", "give COLUMN=VALUE,COLUMN=VALUE")
            if name not in self.config.columns:
                raise UserError(where, f"unknown column {name!r}", nearest(name, self.config.columns))
            if name in row:
                raise UserError(where, f"{name!r} is given twice", "give each column once")
            row[name] = value
        try:
            return self._cells(row)
        except ValueError as error:
            problem, _, remedy = str(error).partition("; ")
            raise UserError(where, problem, remedy or "give COLUMN=VALUE,COLUMN=VALUE") from None

    def _cells(self, row: Mapping[str, Any]) -> np.ndarray:
        cells = np.full(len(self._mean), np.nan)
        for index, name in enumerate(self.config.columns):
            value = parse_cell(name, row.get(name))
            if value is None:
                continue
            if name in self._category_indices:
                known, category = self._category_indices[name], canonical_name(value)
                if category not in known:
                    raise ValueError(f"{name} = {category!r} is not a category; {nearest(category, known)}")
                cells[index] = known[category]
            elif isinstance(value, str):
                raise ValueError(f"{name} = {value!r} is not a number; give a number")
            else:
                cells[index] = value
        return cells
