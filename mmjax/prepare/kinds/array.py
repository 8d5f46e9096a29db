"""Base class of the kinds of arrays [n, columns] whose column count varies between rows: series and point clouds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from mmjax.prepare.kinds.base import File, Kind, Numbers, Unreadable, pooled_mean_and_std, storage_dtype


class ArrayKind(Kind):
    """An array [n, columns], stored as float32 if that is exact for all rows, else float64; NaN in absent columns.

    Attributes:
      noun: name of the raw data in messages.
      parse: (contents, file name) of a file -> array; raises ValueError if the file is invalid.
      check: array of any numeric dtype -> float64 [n, columns]; raises ValueError on another shape.
      measured: name of a column with statistics; `measure` gives the number of these columns as "NAMEs".
      fixed: number of leading columns without statistics, which every array has.
    """

    noun: ClassVar[str]
    parse: ClassVar[staticmethod[[bytes, str], np.ndarray]]
    check: ClassVar[staticmethod[[np.ndarray], np.ndarray]]
    measured: ClassVar[str]
    fixed: ClassVar[int] = 0

    def decode(self, value: Any) -> np.ndarray:
        try:
            if isinstance(value, (File, bytes)):
                file = value if isinstance(value, File) else File("", value)
                return self.parse(file.data, file.name)
            if isinstance(value, (list, tuple, np.ndarray)):
                return self.check(np.asarray(value))
        except ValueError as error:
            raise Unreadable(str(error)) from None
        raise Unreadable(f"{type(value).__name__} is not a {self.noun}")

    def measure_columns(self, values: np.ndarray) -> dict[str, float | int]:
        """Count, mean and standard deviation of the finite values of each column of [n, columns]."""
        statistics: dict[str, float | int] = {}
        for index, column in enumerate(values.T):
            finite = column[np.isfinite(column)]
            name = f"{self.measured}_{index}"
            statistics[f"{name}/values"] = len(finite)
            if len(finite):
                statistics |= {f"{name}/mean": float(finite.mean()), f"{name}/std": float(finite.std())}
        return statistics

    def num_columns(self, summary: Mapping[str, Any]) -> int:
        """Column count to store: the maximum over all rows."""
        return self.fixed + int(summary[f"{self.measured}s"]["largest"]) if summary else self.fixed or 1

    def tfds_feature(self, tfds: Any, summary: Mapping[str, Any]) -> Any:
        shape = (None, self.num_columns(summary))
        return tfds.features.Tensor(shape=shape, dtype=storage_dtype(summary), encoding="bytes")

    def stored(self, raw: np.ndarray, summary: Mapping[str, Any]) -> np.ndarray:
        padding = np.full((len(raw), self.num_columns(summary) - raw.shape[1]), np.nan)
        return np.concatenate([raw, padding], axis=1).astype(storage_dtype(summary))

    def placeholder(self, summary: Mapping[str, Any]) -> np.ndarray:
        return np.full((1, self.num_columns(summary)), np.nan, storage_dtype(summary))

    def dataset_options(self, summary: Mapping[str, Any], numbers: Numbers) -> dict[str, Any]:
        """Number of measured columns, and their means and standard deviations over the training split."""
        pooled = []
        for index in range(self.num_columns(summary) - self.fixed):
            name = f"{self.measured}_{index}"
            counts = numbers.get(f"{name}/values", np.zeros(0))
            statistics = [numbers.get(f"{name}/{each}", np.zeros_like(counts)) for each in ("mean", "std")]
            pooled.append(pooled_mean_and_std(counts, *statistics))
        return {f"{self.measured}s": len(pooled), "mean": [m for m, _ in pooled], "std": [s for _, s in pooled]}
