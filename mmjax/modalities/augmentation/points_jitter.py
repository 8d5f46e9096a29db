"""Point clouds of a scanner that errs (Qi et al., PointNet, 2017)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from mmjax.config import AtLeast
from mmjax.modalities.point_files import as_points


class PointsJitter:
    """Moves each point by Gaussian noise, in proportion to the size of the cloud."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """How far.

        Attributes:
          deviation: along each axis, as a part of the root mean square distance of the points from their middle.
        """

        deviation: Annotated[float, AtLeast(0.0)] = 0.01

    def __init__(self, config: Config):
        self.config = config

    def __call__(self, raw: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        """[n, 3 + features] to float64 of the same shape; features stay."""
        values = as_points(raw)
        places = values[np.isfinite(values[:, :3]).all(axis=1), :3]
        size = np.sqrt(places.var(axis=0).sum()) if len(places) else 0.0
        moved = values[:, :3] + self.config.deviation * size * draws.standard_normal((len(values), 3))
        return np.concatenate([moved, values[:, 3:]], axis=1)
