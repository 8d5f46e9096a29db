"""Random rotation of point clouds."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import numpy as np

from mmjax.config import Within
from mmjax.modalities.augmentation.base import Augmentation
from mmjax.modalities.point_files import as_points

_AXES = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}


class PointsRotation(Augmentation):
    """Rotates a cloud about an axis through the origin, or by a uniformly random rotation. Features are unchanged."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `PointsRotation`.

        Attributes:
          axis: rotation axis. Use "z" for clouds with a vertical direction, such as scans of streets and rooms; "any"
            draws uniformly from all rotations.
          degrees: maximum angle in either direction; ignored for "any".
        """

        axis: Literal["x", "y", "z", "any"] = "z"
        degrees: Annotated[float, Within(0.0, 180.0)] = 180.0

    def __call__(self, raw: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Rotates [n, 3 + features] to float64 of the same shape."""
        values = as_points(raw)
        return np.concatenate([values[:, :3] @ self._matrix(rng).T, values[:, 3:]], axis=1)

    def _matrix(self, rng: np.random.Generator) -> np.ndarray:
        if self.config.axis == "any":
            return _uniform_rotation(rng)
        angle = np.deg2rad(self.config.degrees) * rng.uniform(-1.0, 1.0)
        first, second = _AXES[self.config.axis]
        matrix = np.eye(3)
        matrix[[first, second], [first, second]] = np.cos(angle)
        matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
        return matrix


def _uniform_rotation(rng: np.random.Generator) -> np.ndarray:
    """Draws a rotation matrix [3, 3] from a random unit quaternion (Shoemake, Uniform Random Rotations, 1992)."""
    w, x, y, z = (quaternion := rng.standard_normal(4)) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
