"""Random point dropout, which simulates sparser scans (Qi et al., PointNet++, 2017)."""

from __future__ import annotations

import dataclasses

import numpy as np

from mmjax.config import Rate
from mmjax.modalities.augmentation.base import Augmentation
from mmjax.modalities.point_files import as_points


class PointsDropout(Augmentation):
    """Drops each point with a probability that is drawn per cloud. At least one point remains."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `PointsDropout`.

        Attributes:
          largest: the dropout probability is drawn uniformly from [0, largest].
        """

        largest: Rate = 0.5

    def __call__(self, raw: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Subsamples [n, 3 + features] to float64 [m, 3 + features], keeping the order."""
        values = as_points(raw)
        rate, chances = rng.uniform(0.0, self.config.largest), rng.uniform(0.0, 1.0, len(values))
        kept = chances >= rate
        kept[chances.argmax()] = True
        return values[kept]
