"""Point cloud modality: samples a fixed number of points and normalises their coordinates, with a mask."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from mmjax.config import Count, NonNegative
from mmjax.errors import UserError
from mmjax.modalities.point_files import as_points, read_points
from mmjax.modalities.raw_files import read_bytes
from mmjax.modalities.standardise import StandardiseConfig
from mmjax.tokens import InputSpec

_REMEDY = "give the path of a PCD (ascii or binary), BIN (KITTI) or NPY file"


class Points:
    """Converts point clouds of any size to arrays of a fixed shape. Raw data is float or int [n, 3 + features].

    Points whose coordinates are not finite are dropped. Features that are not finite, and the last
    features of a cloud with fewer than `features`, are replaced by their mean.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(StandardiseConfig):
        """Options of `Points`. A prepared dataset provides features, mean and std.

        Attributes:
          points: number of points; smaller clouds are padded and masked.
          choose: subsampling of larger clouds. "stride" takes every n-th point in file order, which is fast and suits
            scans and randomly ordered points. "farthest" is farthest point sampling, starting with the point that is
            farthest from the centroid. It covers sparse regions in any point order (Eldar et al., The Farthest Point
            Strategy, 1997), and needs one pass over the cloud per sampled point.
          normalise: "sphere" moves the centroid to the origin and scales the farthest point to a distance of 1,
            "centre" only moves the centroid, "none" keeps the coordinates.
          features: number of features per point in addition to x, y and z.
        """

        points: Count = 1024
        choose: Literal["stride", "farthest"] = "stride"
        normalise: Literal["sphere", "centre", "none"] = "sphere"
        features: NonNegative = 0

        def __post_init__(self):
            self.check(self.features)

    def __init__(self, config: Config):
        self.config = config

    @property
    def spec(self) -> InputSpec:
        """[points, 3 + features] float32, with a mask per point."""
        return InputSpec((self.config.points, 3 + self.config.features), "float32", mask_rank=1)

    def process(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Converts a cloud to (values [points, 3 + features] float32, mask [points] bool), deterministically.

        Raises:
          ValueError: if `raw` is not a cloud, has more than `features` features, or no point has finite coordinates.
        """
        values = as_points(raw)
        if values.shape[1] > 3 + self.config.features:
            raise ValueError(f"the points have {values.shape[1] - 3} features instead of {self.config.features}")
        # Prepared data pads like this too.
        missing = 3 + self.config.features - values.shape[1]
        values = np.pad(values, ((0, 0), (0, missing)), constant_values=np.nan)
        values = values[np.isfinite(values[:, :3]).all(axis=1)]
        if not len(values):
            raise ValueError("no point has finite coordinates")
        xyz = values[:, :3]
        if self.config.normalise != "none":
            xyz = xyz - xyz.mean(axis=0)
        if self.config.normalise == "sphere":
            xyz = xyz / (np.linalg.norm(xyz, axis=1).max() or 1.0)
        indices = self._sample(xyz)
        array = np.zeros(self.spec.shape, np.float32)
        array[: len(indices), :3] = xyz[indices]
        array[: len(indices), 3:] = self.config.standardise(values[indices, 3:])
        return array, np.arange(self.config.points) < len(indices)

    def read(self, argument: str, where: str) -> np.ndarray:
        """Reads a PCD, BIN or NPY file from the path `argument`.

        Raises:
          UserError: if the file is missing or invalid.
        """
        data = read_bytes(argument, where, _REMEDY)
        try:
            return read_points(data, argument)
        except ValueError as error:
            raise UserError(where, f"{argument!r}: {error}", _REMEDY) from None

    def _sample(self, xyz: np.ndarray) -> np.ndarray:
        """Returns the indices of the points [n, 3] to keep, at most `config.points`."""
        if len(xyz) <= self.config.points:
            return np.arange(len(xyz))
        if self.config.choose == "stride":
            return np.arange(self.config.points) * len(xyz) // self.config.points
        return farthest_point_sampling(xyz, self.config.points)


def farthest_point_sampling(xyz: np.ndarray, count: int) -> np.ndarray:
    """Samples `count` points of [n, 3] (Eldar et al., The Farthest Point Strategy, 1997).

    The first is the farthest from the centroid; each of the others is the farthest from all points sampled before.

    Returns:
      int64 [count] indices.
    """
    indices = np.zeros(count, np.int64)
    distances = np.square(xyz - xyz.mean(axis=0)).sum(axis=1)
    indices[0] = distances.argmax()
    distances = np.full(len(xyz), np.inf)
    for step in range(1, count):
        distances = np.minimum(distances, np.square(xyz - xyz[indices[step - 1]]).sum(axis=1))
        indices[step] = distances.argmax()
    return indices
