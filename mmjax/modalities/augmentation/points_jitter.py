"""Jitter of point coordinates (Qi et al., PointNet, 2017)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from mmjax.config import AtLeast, Formerly
from mmjax.modalities.augmentation.base import Augmentation
from mmjax.modalities.point_files import as_points


class PointsJitter(Augmentation):
    """Adds Gaussian noise to point coordinates, in proportion to the size of the cloud."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `PointsJitter`.

        Attributes:
          std: standard deviation of the noise per axis, relative to the root mean square distance of the points
            from their centroid.
        """

        std: Annotated[float, AtLeast(0.0), Formerly("deviation")] = 0.01

    def __call__(self, raw: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Transforms [n, 3 + features] to float64 of the same shape; features are unchanged."""
        values = as_points(raw)
        finite_xyz = values[np.isfinite(values[:, :3]).all(axis=1), :3]
        size = np.sqrt(finite_xyz.var(axis=0).sum()) if len(finite_xyz) else 0.0
        moved = values[:, :3] + self.config.std * size * rng.standard_normal((len(values), 3))
        return np.concatenate([moved, values[:, 3:]], axis=1)
