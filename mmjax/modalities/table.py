"""Tables: a row of numbers and categories, some of them missing, becomes one number for each column."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np

from mmjax.config import Formerly
from mmjax.errors import UserError, nearest
from mmjax.tokens import InputSpec

MISSING = ("", "na", "n/a", "nan", "null", "none", "?")
"""How people write that a cell is missing, in lower case."""


def is_missing(cell: Any) -> bool:
    """Whether a cell says that nothing is known."""
    return isinstance(cell, str) and cell.strip().lower() in MISSING


class Table:
    """Makes rows of a table into arrays: numbers standardised, categories as their number, a mask of what is missing.

    Raw data is float [columns] in the order of `columns`, NaN where a cell is missing and a category's number where
    there are categories; or {column: number or category}, in which columns may be left out.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """What the columns are. A prepared dataset says all of it, from its training split.

        Attributes:
          columns: their names.
          categories: {column: names of its categories}; the other columns are numbers.
          mean, std: {column: of its numbers}, by which they are standardised; 0 and 1 by default.
          largest: standardised numbers beyond it are cut off, as one absurd cell must not rule a sum.
        """

        columns: tuple[str, ...]
        categories: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
        mean: Annotated[dict[str, float], Formerly("means")] = dataclasses.field(default_factory=dict)
        std: Annotated[dict[str, float], Formerly("deviations")] = dataclasses.field(default_factory=dict)
        largest: float = 10.0

        def __post_init__(self):
            if not self.columns or len(set(self.columns)) < len(self.columns):
                raise ValueError(f"columns = {self.columns} are none, or one is there twice; name each once")
            for where in ("categories", "mean", "std"):
                for name in getattr(self, where):
                    if name not in self.columns:
                        raise ValueError(f"{where} has an unknown column {name!r}; {nearest(name, self.columns)}")
            if not min((*self.std.values(), self.largest)) > 0:
                raise ValueError("a deviation or largest is not above 0; give one that is")

    def __init__(self, config: Config):
        self.config = config
        self._numbers = {
            column: {name: float(number) for number, name in enumerate(names)}
            for column, names in config.categories.items()
        }
        self._mean = np.array([config.mean.get(name, 0.0) for name in config.columns])
        self._deviation = np.array([config.std.get(name, 1.0) for name in config.columns])
        self._sizes = np.array([len(config.categories.get(name, ())) for name in config.columns])

    @property
    def spec(self) -> InputSpec:
        """[columns] float32 with a flag for each; `categories` is how many a column has, 0 for numbers."""
        details = {"categories": tuple(self._sizes.tolist())}
        return InputSpec((len(self.config.columns),), "float32", mask_rank=1, details=details)

    def process(self, raw: Any) -> tuple[np.ndarray, np.ndarray]:
        """Makes (values [columns] float32, mask [columns] bool) of a row.

        Raises:
          ValueError: if it has other columns, or a category or number that there is not.
        """
        cells = self._cells(raw) if isinstance(raw, Mapping) else np.asarray(raw, np.float64)
        if cells.shape != self._mean.shape:
            raise ValueError(f"a row has {len(self._mean)} cells, not {list(cells.shape)}")
        mask = ~np.isnan(cells)
        filled = np.where(mask, cells, 0.0)
        if not np.isfinite(filled).all():
            raise ValueError("a cell is not finite")
        chosen = self._sizes > 0
        if (chosen & ((filled < 0) | (filled >= self._sizes) | (filled % 1 != 0))).any():
            raise ValueError("a category's number is out of range")
        numbers = np.clip((filled - self._mean) / self._deviation, -self.config.largest, self.config.largest)
        return np.where(mask, np.where(chosen, filled, numbers), 0.0).astype(np.float32), mask

    def read(self, argument: str, where: str) -> np.ndarray:
        """Reads "age=41,colour=red"; columns that are left out are missing.

        Raises:
          UserError: if a column or a category is unknown, or a number is none.
        """
        row: dict[str, str] = {}
        # A comma parts columns only where another one follows, so that categories may have some.
        for part in re.split(r",(?=[^,=]*=)", argument):
            name, equals, value = (word.strip() for word in part.partition("="))
            if not equals:
                raise UserError(where, f"{part!r} gives no value", "give COLUMN=VALUE,COLUMN=VALUE")
            if name not in self.config.columns:
                raise UserError(where, f"there is no column {name!r}", nearest(name, self.config.columns))
            if name in row:
                raise UserError(where, f"{name!r} is there twice", "give each column once")
            row[name] = value
        try:
            return self._cells(row)
        except ValueError as error:
            problem, _, remedy = str(error).partition("; ")
            raise UserError(where, problem, remedy or "give COLUMN=VALUE,COLUMN=VALUE") from None

    def files(self) -> list[pathlib.Path]:
        """None."""
        return []

    def _cells(self, row: Mapping[str, Any]) -> np.ndarray:
        cells = np.full(len(self._mean), np.nan)
        for place, name in enumerate(self.config.columns):
            value = row.get(name)
            if value is None or is_missing(value):
                continue
            if name in self._numbers:
                known = self._numbers[name]
                if str(value) not in known:
                    raise ValueError(f"{name} = {value!r} is no category; {nearest(str(value), known)}")
                cells[place] = known[str(value)]
                continue
            try:
                cells[place] = float(value)
            except (TypeError, ValueError):
                raise ValueError(f"{name} = {value!r} is no number; give one") from None
            if not math.isfinite(cells[place]):
                raise ValueError(f"{name} = {value!r} is not finite; leave out what is missing")
        return cells
