"""Random anisotropic scaling of point clouds (Klokov and Lempitsky, Escape from Cells, 2017)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from mmjax.config import Within
from mmjax.modalities.augmentation.base import Augmentation
from mmjax.modalities.point_files import as_points


class PointsScaling(Augmentation):
    """Scales a cloud about the origin by an independent random factor per axis.

    Unless it has `normalise="none"`, the points modality then moves the centroid to the origin, so the result equals
    scaling about the centroid.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `PointsScaling`.

        Attributes:
          change: factors are drawn uniformly from [1 - change, 1 + change].
        """

        change: Annotated[float, Within(0.0, 0.9)] = 0.2

    def __call__(self, raw: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Scales [n, 3 + features] to float64 of the same shape; features are unchanged."""
        values = as_points(raw)
        factors = 1.0 + self.config.change * rng.uniform(-1.0, 1.0, 3)
        return np.concatenate([values[:, :3] * factors, values[:, 3:]], axis=1)
