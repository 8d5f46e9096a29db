"""Jitter of sensor series (Um et al., Data Augmentation of Wearable Sensor Data, 2017)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from mmjax.config import AtLeast, Formerly
from mmjax.modalities.augmentation.base import Augmentation
from mmjax.modalities.series import as_series, channel_means


class SeriesJitter(Augmentation):
    """Adds Gaussian noise in proportion to each channel's standard deviation. Missing values stay missing."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `SeriesJitter`.

        Attributes:
          std: standard deviation of the noise, relative to that of the channel within the series.
        """

        std: Annotated[float, AtLeast(0.0), Formerly("deviation")] = 0.05

    def __call__(self, raw: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Transforms [n] or [n, channels] to float64 [n, channels]."""
        values = as_series(raw)
        valid = np.isfinite(values)
        centred = np.where(valid, values - channel_means(values), 0.0)
        channel_std = np.sqrt(np.square(centred).sum(axis=0) / np.maximum(valid.sum(axis=0), 1))
        return values + self.config.std * channel_std * rng.standard_normal(values.shape)
