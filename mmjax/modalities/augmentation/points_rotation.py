"""Point clouds seen from another side."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import numpy as np

from mmjax.config import Within
from mmjax.modalities.point_files import as_points

_AXES = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}


class PointsRotation:
    """Turns a cloud about the origin by a random angle about an axis, or to any side. Features do not turn with it."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """How far, and about what.

        Attributes:
          axis: "z" where up and down mean something, as in scans of streets and rooms; "any" where they do not, which
            draws from all rotations alike.
          degrees: the largest angle, to either side; "any" takes no notice of it.
        """

        axis: Literal["x", "y", "z", "any"] = "z"
        degrees: Annotated[float, Within(0.0, 180.0)] = 180.0

    def __init__(self, config: Config):
        self.config = config

    def __call__(self, raw: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        """[n, 3 + features] to float64 of the same shape."""
        values = as_points(raw)
        return np.concatenate([values[:, :3] @ self._matrix(draws).T, values[:, 3:]], axis=1)

    def _matrix(self, draws: np.random.Generator) -> np.ndarray:
        if self.config.axis == "any":
            return _any_rotation(draws)
        angle = np.deg2rad(self.config.degrees) * draws.uniform(-1.0, 1.0)
        first, second = _AXES[self.config.axis]
        matrix = np.eye(3)
        matrix[[first, second], [first, second]] = np.cos(angle)
        matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
        return matrix


def _any_rotation(draws: np.random.Generator) -> np.ndarray:
    """That of a unit quaternion of any direction (Shoemake, Uniform Random Rotations, 1992)."""
    w, x, y, z = (quaternion := draws.standard_normal(4)) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
