"""Series: what sensors measure at regular times becomes standardised numbers, with flags of what is there."""

from __future__ import annotations

import csv
import dataclasses
import pathlib

import numpy as np

from mmjax.config import Count
from mmjax.errors import UserError
from mmjax.modalities.raw_files import NPY, read_bytes, read_npy
from mmjax.modalities.standard import StandardConfig
from mmjax.modalities.table import is_missing
from mmjax.tokens import InputSpec

MOST_CHANNELS = 256
"""What has more is a series that lies on its side, [channels, n]."""

_REMEDY = "give the path of an NPY or CSV file, a step in each row and a channel in each column"


class Series:
    """Makes series of any length into arrays of one shape. Raw data is float, int or bool [n] or [n, channels].

    A value that is not finite is missing. Values are standardised, missing ones are then 0, which is the mean; a flag
    beside each value says whether it was there, so that a model can tell the two apart.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(StandardConfig):
        """How a series becomes an array. A prepared dataset says channels, mean and std.

        Attributes:
          length: in steps; what is longer is cut at its end, what is shorter is padded and masked.
          channels: numbers in each step.
        """

        length: Count = 256
        channels: Count = 1

        def __post_init__(self):
            self.check(self.channels)

    def __init__(self, config: Config):
        self.config = config

    @property
    def spec(self) -> InputSpec:
        """[length, 2 x channels] float32, the values and then their flags; the mask has a flag for each step."""
        return InputSpec((self.config.length, 2 * self.config.channels), "float32", mask_rank=1)

    def process(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Makes (values [length, 2 x channels] float32, mask [length] bool); a step is real where any channel is there.

        Raises:
          ValueError: if `raw` is no series of so many channels, or nothing of it is there.
        """
        values = as_series(raw)
        if values.shape[1] != self.config.channels:
            raise ValueError(f"a series of {values.shape[1]} channels, where there should be {self.config.channels}")
        values = values[: self.config.length]
        there = np.isfinite(values)
        if not there.any():
            raise ValueError(f"nothing is there in the first {self.config.length} steps of the series")
        array = np.zeros(self.spec.shape, np.float32)
        array[: len(values)] = np.concatenate([self.config.standardise(values), there], axis=1)
        mask = np.zeros(self.config.length, bool)
        mask[: len(values)] = there.any(axis=1)
        return array, mask

    def read(self, argument: str, where: str) -> np.ndarray:
        """Reads the NPY or CSV file at the path `argument`; see `read_series`. Raises UserError."""
        data = read_bytes(argument, where, _REMEDY)
        try:
            return read_series(data)
        except ValueError as error:
            raise UserError(where, f"{argument!r}: {error}", _REMEDY) from None

    def files(self) -> list[pathlib.Path]:
        """None."""
        return []


def as_series(raw: np.ndarray) -> np.ndarray:
    """float64 [n, channels] of float, int or bool [n] or [n, channels]; what float32 cannot hold is infinite.

    Raises:
      ValueError: if it is none of these, or has no step or more than `MOST_CHANNELS`.
    """
    values = np.asarray(raw)
    if values.dtype.kind not in "fiub" or values.ndim not in (1, 2):
        raise ValueError(f"a series is numbers [n] or [n, channels], not {values.dtype} {list(values.shape)}")
    values = values.reshape(len(values), -1) if len(values) else values.reshape(0, 1)
    if not values.size:
        raise ValueError("the series has no steps")
    if values.shape[1] > MOST_CHANNELS:
        raise ValueError(f"a series is [n, channels] with at most {MOST_CHANNELS} channels, not {list(values.shape)}")
    with np.errstate(over="ignore"):
        return values.astype(np.float32).astype(np.float64)


def read_series(data: bytes) -> np.ndarray:
    """Makes the bytes of an NPY or CSV file float64 [n, channels], NaN where a value is missing.

    CSV has a step in each line, with commas, semicolons or tabs between its channels, and may begin with their names.
    A cell that is empty or `NA` is missing, and so is all of an empty line.

    Raises:
      ValueError: if it is neither, or there is nothing in it.
    """
    if data.startswith(NPY):
        return as_series(read_npy(data))
    try:
        lines = data.decode("utf-8-sig").rstrip("\r\n").splitlines()
    except UnicodeDecodeError:
        raise ValueError("neither NPY nor text in UTF-8") from None
    delimiter = next((sign for sign in "\t;" if lines and sign in lines[0]), ",")
    try:
        rows = list(csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise ValueError(f"no CSV: {error}") from None
    # pandas writes the numbers of the columns above them, and those of the rows in a column without a name.
    numbered = bool(rows) and len(rows[0]) > 1 and rows[0] == ["", *map(str, range(len(rows[0]) - 1))]
    named = numbered or (bool(rows) and not all(_is_value(cell) for cell in rows[0]))
    if numbered:
        rows = [row[1:] for row in rows]
    width = max((len(row) for row in rows), default=0)
    steps = []
    for number, row in enumerate(rows[named:], 1 + named):
        if row and len(row) != width:
            raise ValueError(f"line {number} has {len(row)} values and not {width}")
        try:
            steps.append([np.nan if is_missing(cell) else float(cell) for cell in row] or [np.nan] * width)
        except ValueError:
            raise ValueError(f"line {number} has a value that is no number: {','.join(row)[:80]!r}") from None
    return as_series(np.asarray(steps, np.float64).reshape(-1, max(width, 1)))


def _is_value(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return is_missing(cell)
    return True
