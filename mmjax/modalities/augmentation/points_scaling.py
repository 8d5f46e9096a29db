"""Point clouds of things that are longer, wider or taller (Klokov and Lempitsky, Escape from Cells, 2017)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from mmjax.config import Within
from mmjax.modalities.point_files import as_points


class PointsScaling:
    """Stretches a cloud along each axis by a factor of its own, drawn uniformly around 1."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Bounds.

        Attributes:
          change: the factors lie between 1 - `change` and 1 + `change`.
        """

        change: Annotated[float, Within(0.0, 0.9)] = 0.2

    def __init__(self, config: Config):
        self.config = config

    def __call__(self, raw: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        """[n, 3 + features] to float64 of the same shape; features stay."""
        values = as_points(raw)
        factors = 1.0 + self.config.change * draws.uniform(-1.0, 1.0, 3)
        return np.concatenate([values[:, :3] * factors, values[:, 3:]], axis=1)
