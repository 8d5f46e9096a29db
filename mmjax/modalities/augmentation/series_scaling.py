"""Random scaling of sensor series (Um et al., Data Augmentation of Wearable Sensor Data, 2017)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from mmjax.config import AtLeast, Formerly
from mmjax.modalities.augmentation.base import Augmentation
from mmjax.modalities.series import as_series, channel_means


class SeriesScaling(Augmentation):
    """Multiplies each channel's deviations from its mean by an independent factor, normally distributed with mean 1.

    The mean is kept: scaling it would shift a channel such as 1013 ± 5 hPa by many standard deviations.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `SeriesScaling`.

        Attributes:
          std: standard deviation of the factors.
        """

        std: Annotated[float, AtLeast(0.0), Formerly("deviation")] = 0.1

    def __call__(self, raw: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Transforms [n] or [n, channels] to float64 [n, channels]. Missing values stay missing."""
        values = as_series(raw)
        mean = channel_means(values)
        return mean + (values - mean) * rng.normal(1.0, self.config.std, values.shape[1])
