"""Regression targets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.modalities.table import is_missing
from mmjax.prepare.kinds.base import Kind, Numbers, Unreadable, mean_and_std


class NumberKind(Kind):
    """A scalar, stored as float64. Batches standardize it before rounding it to float32."""

    target = True

    def decode(self, value: Any) -> float | None:
        if is_missing(value):
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise Unreadable(f"{value!r} is not a number") from None
        if not math.isfinite(number):
            raise Unreadable(f"{value!r} is not finite")
        return number

    def measure(self, raw: float) -> dict[str, float | int | str]:
        return {"value": raw, "bytes": 8}

    def dataset_options(self, summary: Mapping[str, Any], numbers: Numbers) -> dict[str, Any]:
        """Mean and standard deviation of the training split, with which regression standardizes targets."""
        statistics = mean_and_std(numbers.get("value", np.zeros(0)))
        return {} if statistics is None else dict(zip(("mean", "deviation"), statistics, strict=True))

    def tfds_feature(self, tfds: Any, summary: Mapping[str, Any]) -> Any:
        return tfds.features.Tensor(shape=(), dtype=np.float64, encoding="bytes")

    def stored(self, raw: float, summary: Mapping[str, Any]) -> np.float64:
        return np.float64(raw)

    def placeholder(self, summary: Mapping[str, Any]) -> np.float64:
        return np.float64(math.nan)

    def show(self, raw: float) -> str:
        return f"<b>{raw:g}</b>"
