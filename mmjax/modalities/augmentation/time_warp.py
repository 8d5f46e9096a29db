"""Time warping of sensor series (Um et al., Data Augmentation of Wearable Sensor Data, 2017)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from mmjax.config import AtLeast, Count, Formerly
from mmjax.modalities.augmentation.base import Augmentation
from mmjax.modalities.series import as_series

# Lower bound of the speed, which keeps time strictly increasing.
_MIN_SPEED = 0.1


class TimeWarp(Augmentation):
    """Warps time with a smooth random speed curve: a cubic spline through random speeds at evenly spaced knots.

    Start, end and length are preserved, and all channels share one warp. Values are interpolated linearly between two
    steps; if either is missing, the nearest step is used, which may be missing too.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `TimeWarp`.

        Attributes:
          std: standard deviation of the speeds, which are normally distributed with mean 1.
          knots: number of interior knots of the spline; the start and the end are two more.
        """

        std: Annotated[float, AtLeast(0.0), Formerly("deviation")] = 0.2
        knots: Count = 4

    def __call__(self, raw: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Transforms [n] or [n, channels] to float64 [n, channels]."""
        # Import here: importing scipy.interpolate is slow, and training without time warping does not need it.
        import scipy.interpolate

        values = as_series(raw)
        count = len(values)
        speeds = rng.normal(1.0, self.config.std, self.config.knots + 2)
        if count == 1:
            return values
        knots = np.linspace(0.0, 1.0, len(speeds))
        spline = scipy.interpolate.CubicSpline(knots, np.maximum(speeds, _MIN_SPEED))
        step_speeds = np.maximum(spline(np.linspace(0.0, 1.0, count - 1)), _MIN_SPEED)
        positions = np.concatenate([[0.0], np.cumsum(step_speeds)]) * (count - 1) / step_speeds.sum()
        lower = np.minimum(positions.astype(np.int64), count - 2)
        fraction = (positions - lower)[:, None]
        left, right = values[lower], values[lower + 1]
        interpolated = left * (1 - fraction) + right * fraction
        return np.where(np.isfinite(interpolated), interpolated, np.where(fraction < 0.5, left, right))
