"""Numbers: what a regression answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.data.prepare.kinds.base import Kind, Unreadable


class NumberKind(Kind):
    """A number, stored as float32."""

    target = True

    def decode(self, value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise Unreadable(f"{value!r} is no number") from None
        if not math.isfinite(number):
            raise Unreadable(f"{value!r} is not finite")
        return number

    def measure(self, raw: float) -> dict[str, float | int | str]:
        return {"value": raw, "bytes": 8}

    def facts(self, summary: Mapping[str, Any], numbers: Mapping[str, Any]) -> dict[str, Any]:
        """Mean and deviation of the training split, by which a regression standardises."""
        values = numbers.get("value", np.zeros(0))
        values = values[~np.isnan(values)]
        if not len(values):
            return {}
        mean, deviation = float(values.mean()), float(values.std())
        # A constant is learned at once, whatever it is divided by.
        return {"mean": mean, "deviation": deviation if deviation > 1e-6 * max(1.0, abs(mean)) else 1.0}

    def feature(self, tfds: Any, summary: Mapping[str, Any]) -> Any:
        return tfds.features.Scalar(dtype=np.float32)

    def stored(self, raw: float, summary: Mapping[str, Any]) -> float:
        return raw

    def placeholder(self, summary: Mapping[str, Any]) -> float:
        return math.nan

    def show(self, raw: float) -> str:
        return f"<b>{raw:g}</b>"
