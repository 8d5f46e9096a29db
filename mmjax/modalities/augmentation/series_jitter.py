"""Noise on what sensors measure (Um et al., Data Augmentation of Wearable Sensor Data, 2017)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from mmjax.config import AtLeast
from mmjax.modalities.series import as_series


class SeriesJitter:
    """Adds Gaussian noise to a series, in proportion to what each channel varies by. What is missing stays missing."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """How much.

        Attributes:
          deviation: of the noise, as a part of the deviation of the channel within this series.
        """

        deviation: Annotated[float, AtLeast(0.0)] = 0.05

    def __init__(self, config: Config):
        self.config = config

    def __call__(self, raw: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        """[n] or [n, channels] to float64 [n, channels]."""
        values = as_series(raw)
        there = np.isfinite(values)
        count = np.maximum(there.sum(axis=0), 1)
        centred = np.where(there, values, 0.0)
        centred = np.where(there, centred - centred.sum(axis=0) / count, 0.0)
        deviations = np.sqrt(np.square(centred).sum(axis=0) / count)
        return values + self.config.deviation * deviations * draws.standard_normal(values.shape)
