"""Series modality: standardises regularly sampled sensor data, with flags for missing values."""

from __future__ import annotations

import csv
import dataclasses

import numpy as np

from mmjax.config import Count
from mmjax.errors import UserError
from mmjax.modalities.raw_files import NPY, check_size, read_bytes, read_npy, to_float64
from mmjax.modalities.standardise import StandardiseConfig
from mmjax.modalities.table import is_missing, is_number
from mmjax.tokens import InputSpec

MAX_CHANNELS = 256
"""Maximum number of channels; a series with more is probably transposed, [channels, n]."""

MAX_CSV_BYTES = 2**25
"""Maximum size of a CSV file of a series, whose parsing takes about 30 times as much memory."""

_REMEDY = "give the path of an NPY or CSV file with one step per row and one channel per column"


class Series:
    """Converts series of any length to arrays of a fixed shape. Raw data is float, int or bool [n] or [n, channels].

    Values that are not finite count as missing. After standardisation, missing values are 0, the mean; a validity flag
    per value distinguishes the two. Of a series with fewer than `channels`, the last channels are missing.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(StandardiseConfig):
        """Options of `Series`. A prepared dataset provides channels, mean and std.

        Attributes:
          length: length in steps. Longer series are truncated at the end, shorter ones are padded and masked.
          channels: number of channels.
        """

        length: Count = 256
        channels: Count = 1

        def __post_init__(self):
            self.check(self.channels)

    def __init__(self, config: Config):
        self.config = config

    @property
    def spec(self) -> InputSpec:
        """[length, 2 * channels] float32, the values and then their validity flags, with a mask per step."""
        channels = self.config.channels
        details = {"flags": tuple(range(channels, 2 * channels))}
        return InputSpec((self.config.length, 2 * channels), "float32", mask_rank=1, details=details)

    def process(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Converts a series to (values [length, 2 * channels] float32, mask [length] bool).

        The mask is True at steps with at least one valid channel.

        Raises:
          ValueError: if `raw` is not a series, has more than `channels` channels, or all of its values are missing.
        """
        values = as_series(raw)
        if values.shape[1] > self.config.channels:
            raise ValueError(f"the series has {values.shape[1]} channels instead of {self.config.channels}")
        # Prepared data pads like this too.
        values = np.pad(values, ((0, 0), (0, self.config.channels - values.shape[1])), constant_values=np.nan)
        values = values[: self.config.length]
        valid = np.isfinite(values)
        if not valid.any():
            raise ValueError(f"all values of the first {self.config.length} steps are missing")
        array = np.zeros(self.spec.shape, np.float32)
        array[: len(values)] = np.concatenate([self.config.standardise(values), valid], axis=1)
        mask = np.zeros(self.config.length, bool)
        mask[: len(values)] = valid.any(axis=1)
        return array, mask

    def read(self, argument: str, where: str) -> np.ndarray:
        """Reads an NPY or CSV file from the path `argument`; see `read_series`.

        Raises:
          UserError: if the file is missing or invalid.
        """
        data = read_bytes(argument, where, _REMEDY)
        try:
            return read_series(data)
        except ValueError as error:
            raise UserError(where, f"{argument!r}: {error}", _REMEDY) from None


def as_series(raw: np.ndarray) -> np.ndarray:
    """Converts float, int or bool [n] or [n, channels] to float64 [n, channels].

    Values outside the float32 range become infinite.

    Raises:
      ValueError: if the dtype or shape differs, or the series is empty or has more than `MAX_CHANNELS` channels.
    """
    values = np.asarray(raw)
    if values.dtype.kind not in "fiub" or values.ndim not in (1, 2):
        raise ValueError(f"a series must be numeric [n] or [n, channels], not {values.dtype} {list(values.shape)}")
    values = values.reshape(len(values), -1) if len(values) else values.reshape(0, 1)
    if not values.size:
        raise ValueError("the series has no steps")
    if values.shape[1] > MAX_CHANNELS:
        raise ValueError(f"a series must have at most {MAX_CHANNELS} channels, not shape {list(values.shape)}")
    check_size(values)
    return to_float64(values)


def channel_means(values: np.ndarray) -> np.ndarray:
    """Mean of the finite values of each channel of [n, channels], float64 [channels]; 0 for channels without any."""
    valid = np.isfinite(values)
    return np.where(valid, values, 0.0).sum(axis=0) / np.maximum(valid.sum(axis=0), 1)


def read_series(data: bytes) -> np.ndarray:
    """Parses an NPY or CSV file to float64 [n, channels], with NaN for missing values.

    CSV has one step per line and an optional header. Channels are separated by commas, semicolons or tabs. Empty cells,
    `NA` and the like (`table.MISSING`) are missing values; so are all cells of an empty line.

    Raises:
      ValueError: if the file is neither NPY nor CSV, or is damaged or empty.
    """
    if data.startswith(NPY):
        return as_series(read_npy(data))
    if len(data) > MAX_CSV_BYTES:
        raise ValueError(f"{len(data):,} bytes of CSV are more than {MAX_CSV_BYTES:,}; save it as NPY")
    try:
        lines = data.decode("utf-8-sig").rstrip("\r\n").splitlines()
    except UnicodeDecodeError:
        raise ValueError("neither NPY nor UTF-8 text") from None
    delimiter = next((each for each in "\t;" if lines and each in lines[0]), ",")
    try:
        rows = list(csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise ValueError(f"not valid CSV: {error}") from None
    # pandas writes column numbers as a header, and row numbers in an unnamed first column.
    has_index = bool(rows) and len(rows[0]) > 1 and rows[0] == ["", *map(str, range(len(rows[0]) - 1))]
    has_header = has_index or (bool(rows) and not all(is_number(cell) or is_missing(cell) for cell in rows[0]))
    if has_index:
        rows = [row[1:] for row in rows]
    width = max((len(row) for row in rows), default=0)
    steps = []
    for line, row in enumerate(rows[has_header:], 1 + has_header):
        if row and len(row) != width:
            raise ValueError(f"line {line} has {len(row)} values instead of {width}")
        try:
            steps.append([np.nan if is_missing(cell) else float(cell) for cell in row] or [np.nan] * width)
        except ValueError:
            raise ValueError(f"line {line} has a value that is not a number: {','.join(row)[:80]!r}") from None
    return as_series(np.asarray(steps, np.float64).reshape(-1, max(width, 1)))
