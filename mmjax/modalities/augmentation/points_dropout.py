"""Point clouds of a scanner that sees less (Qi et al., PointNet++, 2017)."""

from __future__ import annotations

import dataclasses

import numpy as np

from mmjax.config import Rate
from mmjax.modalities.point_files import as_points


class PointsDropout:
    """Leaves out a share of the points, drawn uniformly, each as likely as the others; one is always left."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """How many.

        Attributes:
          largest: of the shares.
        """

        largest: Rate = 0.5

    def __init__(self, config: Config):
        self.config = config

    def __call__(self, raw: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        """[n, 3 + features] to float64 [m, 3 + features], in the same order."""
        values = as_points(raw)
        share, chances = draws.uniform(0.0, self.config.largest), draws.uniform(0.0, 1.0, len(values))
        kept = chances >= share
        kept[chances.argmax()] = True
        return values[kept]
