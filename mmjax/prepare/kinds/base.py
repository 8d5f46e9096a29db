"""Interface of a column kind: decode, measure, compare, store and display values."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

# Numeric measurements of all rows: {measure: float [rows], NaN where missing}.
Numbers = Mapping[str, np.ndarray]
# String measurements of all rows: {measure: [rows], None where missing}.
Strings = Mapping[str, Sequence[str | None]]


# Relative standard deviation up to which values count as constant: rounding of the mean alone gives about 1e-16.
_ROUNDING = 1e-14


class Unreadable(ValueError):
    """Raised when a value cannot be decoded; the message gives the reason."""


@dataclasses.dataclass(frozen=True)
class File:
    """Contents of a file, with its name for messages and for dispatch on the suffix."""

    name: str
    data: bytes


def mean_and_std(values: np.ndarray) -> tuple[float, float] | None:
    """Mean and standard deviation, ignoring NaN; None if no value is left. Constant values get standard deviation 1."""
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    mean, std = float(values.mean()), float(values.std())
    return mean, std if std > _ROUNDING * abs(mean) else 1.0


def pooled_mean_and_std(counts: np.ndarray, means: np.ndarray, stds: np.ndarray) -> tuple[float, float]:
    """Combines the statistics of several groups [groups] into the mean and standard deviation of all their values.

    Groups with count 0 are ignored; their statistics may be NaN. Constant values get standard deviation 1, as in
    `mean_and_std`. Returns (0, 1) if all counts are 0.
    """
    filled = counts > 0
    counts, means, stds = counts[filled], means[filled], stds[filled]
    if not len(counts):
        return 0.0, 1.0
    mean = float(np.average(means, weights=counts))
    std = float(np.sqrt(np.average(np.square(stds) + np.square(means - mean), weights=counts)))
    return mean, std if std > _ROUNDING * abs(mean) else 1.0


def data_uri(media_type: str, data: bytes) -> str:
    """Returns a data URI, which embeds a file in HTML."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def storage_dtype(summary: Mapping[str, Any]) -> Any:
    """Returns float32 if the measure "float32" is 1 in all rows, so that nothing is rounded; else float64."""
    return np.float32 if summary.get("float32", {"smallest": 1})["smallest"] else np.float64


class Kind:
    """Base class of all column kinds. The defaults measure nothing, report no faults and find no near duplicates.

    A kind is constructed from its `Config` (thresholds of its checks) and its `Reduce` (downsampling options).
    `decode`, `measure`, `signature` and `features` must not depend on thresholds: their results are stored, and judged
    again when thresholds change.

    Attributes:
      target: True if columns of this kind are targets; the others are inputs.
      fault_names: all keys that `faults` may return.
      distinctive: True if two examples that share only this input are suspicious. False for text: captions may repeat.
      duplicates_expected: True if equal rows are legitimate, such as repeated measurements; duplicates are then
        reported but kept.
      keeps_strings: True if the strings in `measure` are categories, which are kept and counted.
      takes_folders: True if a path may name a folder; `decode` then gets a tuple of its files.
      tokenized: True if `restore` returns strings, for which a tokenizer can be trained.
      has_classes: True for targets whose class names are in the measure "class"; see `class_names`.
      multi_column: True if several source columns form one column of this kind; `decode` then gets {column: value}.
      inline: True if a text in a manifest may be the value itself, although it looks like a path.
      value_faults: faults that discard the value but keep the row.
      suffixes: file suffixes of this kind, lower case, with the dot.
    """

    target: ClassVar[bool] = False
    distinctive: ClassVar[bool] = True
    duplicates_expected: ClassVar[bool] = False
    keeps_strings: ClassVar[bool] = False
    takes_folders: ClassVar[bool] = False
    tokenized: ClassVar[bool] = False
    has_classes: ClassVar[bool] = False
    multi_column: ClassVar[bool] = False
    inline: ClassVar[bool] = False
    fault_names: ClassVar[tuple[str, ...]] = ()
    value_faults: ClassVar[tuple[str, ...]] = ()
    suffixes: ClassVar[tuple[str, ...]] = ()

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """No options."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Reduce:
        """No downsampling options."""

    def __init__(self, config: Any = None, reduce: Any = None):
        # True if the column holds file paths; a few values may be invalid.
        self.paths = False
        self.config: Any = self.Config() if config is None else config
        self.reduce: Any = self.Reduce() if reduce is None else reduce

    def is_path(self, value: str) -> bool:
        """Returns True if a string in a manifest is a file path, False if it is the value itself."""
        return bool(self.suffixes) and not self.target

    def decode(self, value: Any) -> Any:
        """Decodes a `File`, or a value from a manifest or record, to raw data. Returns None for a missing value.

        Raises:
          Unreadable: if the value cannot be decoded.
        """
        raise NotImplementedError

    def reduced(self, raw: Any) -> Any:
        """Downsamples raw data according to `self.reduce`. Identity by default."""
        return raw

    def measure_whole(self, raw: Any) -> dict[str, float | int | str]:
        """Measures raw data before `reduced`, for properties that it changes; overrides the results of `measure`."""
        return {}

    def measure(self, raw: Any) -> dict[str, float | int | str]:
        """Numbers and strings that describe raw data. "bytes" is the estimated size of the stored value."""
        return {}

    def faults(self, measured: Mapping[str, Any]) -> dict[str, str]:
        """Faults of one value, from its measurements: {fault name: reason}."""
        return {}

    def quality(self, measured: Mapping[str, Any]) -> float:
        """Priority among near duplicates, for example pixel or sample count. The row with the highest is kept."""
        return 0.0

    # Near duplicates.

    def signature(self, raw: Any) -> bytes | None:
        """Compact signature for `hashes` and `similarity`. None excludes the value from the comparison."""
        return None

    def hashes(self, signature: bytes) -> np.ndarray | None:
        """Hashes uint64 or uint32 [n] for `candidates`, with the same n for all values."""
        return None

    def candidates(self, hashes: np.ndarray) -> np.ndarray:
        """Candidate near duplicates int64 [pairs, 2]: row indices of `hashes` [rows, n]. Favour recall."""
        return np.zeros((0, 2), np.int64)

    def similarity(self, a: bytes, b: bytes) -> float:
        """Similarity of two signatures. Pairs at or above `config.similarity` are near duplicates."""
        return 0.0

    def pair_filter(self, pairs: Iterable[tuple[bytes, bytes]]) -> Callable[[bytes, bytes], bool] | None:
        """Fits a predicate `filter(a, b)`, True for copies, on the similar pairs of all rows.

        Returns None if all similar pairs count as copies.
        """
        return None

    # Suspected label errors.

    def features(self, raw: Any) -> np.ndarray | None:
        """Features float32 [n] for label-error detection, with the same n for all values; None if undefined."""
        return None

    def column_features(self, numbers: Numbers, strings: Strings) -> np.ndarray | None:
        """Features float [rows, n] from the measurements of all rows, if the kind needs no raw data for them.

        Takes precedence over `features`.
        """
        return None

    # Storage. `restore` inverts `stored` up to the rounding that each kind documents.

    def tfds_feature(self, tfds: Any, summary: Mapping[str, Any]) -> Any:
        """TFDS feature connector of the column; `summary` is the result of `summarise`."""
        raise NotImplementedError

    def stored(self, raw: Any, summary: Mapping[str, Any]) -> Any:
        """Converts raw data to the value that the TFDS feature encodes."""
        raise NotImplementedError

    def placeholder(self, summary: Mapping[str, Any]) -> Any:
        """Value stored for rows that lack this column. Never passed to `restore`."""
        raise NotImplementedError

    def restore(self, stored: Any) -> Any:
        """Converts a stored value, decoded by TFDS or read without decoding, to raw data of the modality."""
        return stored

    # Statistics over rows.

    def summarise(self, numbers: Numbers, strings: Strings) -> dict[str, Any]:
        """Column statistics that storage needs. By default {measure: {"smallest", "largest"}}."""
        measured = {name: values[~np.isnan(values)] for name, values in numbers.items()}
        return {
            name: {"smallest": float(values.min()), "largest": float(values.max())}
            for name, values in measured.items()
            if len(values)
        }

    def summarise_training(self, numbers: Numbers) -> dict[str, Any]:
        """Statistics of the training split that storage needs, added to those of `summarise`."""
        return {}

    def dataset_options(self, summary: Mapping[str, Any], numbers: Numbers) -> dict[str, Any]:
        """Modality options derived from the data; `numbers` are the measurements of the training split."""
        return {}

    def notes(self, summary: Mapping[str, Any]) -> list[str]:
        """Remarks about the column for the report, from the result of `summarise`."""
        return []

    def class_names(self, category: str) -> tuple[str, ...]:
        """Class names in a value of the measure "class", for kinds with `has_classes`."""
        raise NotImplementedError

    # The data card.

    def rendered(self, raw: Any, summary: Mapping[str, Any]) -> Any:
        """Raw data as it will be stored, for `show`."""
        return raw

    def show(self, raw: Any) -> str:
        """Renders raw data as HTML for the data card."""
        raise NotImplementedError
