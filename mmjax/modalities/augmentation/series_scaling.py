"""Sensors of another gain (Um et al., Data Augmentation of Wearable Sensor Data, 2017)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from mmjax.config import AtLeast
from mmjax.modalities.series import as_series


class SeriesScaling:
    """Multiplies each channel of a series by a factor of its own, drawn from a normal distribution around 1."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """How much.

        Attributes:
          deviation: of the factors.
        """

        deviation: Annotated[float, AtLeast(0.0)] = 0.1

    def __init__(self, config: Config):
        self.config = config

    def __call__(self, raw: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        """[n] or [n, channels] to float64 [n, channels]; what is missing stays missing."""
        values = as_series(raw)
        return values * draws.normal(1.0, self.config.deviation, values.shape[1])
