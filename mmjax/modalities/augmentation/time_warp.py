"""Series that run faster here and slower there (Um et al., Data Augmentation of Wearable Sensor Data, 2017)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from mmjax.config import AtLeast, Count
from mmjax.modalities.series import as_series

# Time never stands still, nor runs backwards.
_SLOWEST = 0.1


class TimeWarp:
    """Bends time: a cubic spline through speeds drawn at a few moments, around 1, says how fast each step passes.

    Beginning, end and length stay, and all channels are bent alike. A value between two steps is interpolated linearly;
    where one of the two is missing it is that of the nearer, and missing if that one is.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """How much, and how smoothly.

        Attributes:
          deviation: of the speeds, which are normally distributed around 1.
          knots: moments with a speed of their own between the beginning and the end.
        """

        deviation: Annotated[float, AtLeast(0.0)] = 0.2
        knots: Count = 4

    def __init__(self, config: Config):
        self.config = config

    def __call__(self, raw: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        """[n] or [n, channels] to float64 [n, channels]."""
        # SciPy's interpolation takes long to import; training without this does without.
        import scipy.interpolate

        values = as_series(raw)
        count = len(values)
        speeds = draws.normal(1.0, self.config.deviation, self.config.knots + 2)
        if count == 1:
            return values
        moments = np.linspace(0.0, 1.0, len(speeds))
        spline = scipy.interpolate.CubicSpline(moments, np.maximum(speeds, _SLOWEST))
        pace = np.maximum(spline(np.linspace(0.0, 1.0, count - 1)), _SLOWEST)
        places = np.concatenate([[0.0], np.cumsum(pace)]) * (count - 1) / pace.sum()
        below = np.minimum(places.astype(np.int64), count - 2)
        part = (places - below)[:, None]
        first, second = values[below], values[below + 1]
        between = first * (1 - part) + second * part
        return np.where(np.isfinite(between), between, np.where(part < 0.5, first, second))
