"""Point clouds: any number of points becomes so many, about the origin, with a mask of what is real."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Literal

import numpy as np

from mmjax.config import Count, NonNegative
from mmjax.errors import UserError
from mmjax.modalities.point_files import as_points, read_points
from mmjax.modalities.raw_files import read_bytes
from mmjax.modalities.standard import StandardConfig
from mmjax.tokens import InputSpec

_REMEDY = "give the path of a PCD (ascii or binary), BIN (KITTI) or NPY file"


class Points:
    """Makes point clouds of any size into arrays of one shape. Raw data is float or int [n, 3 + features].

    Points whose place is not finite are left out. A feature that is not finite is taken for its mean.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(StandardConfig):
        """How a cloud becomes an array. A prepared dataset says features, mean and std.

        Attributes:
          points: how many; of fewer all are kept, and the rest is masked.
          choose: which are kept of more. "stride" takes every so-manieth in the order of the file, which is quick and
            suits scans and points in random order. "farthest" takes again and again the point that is farthest from
            those taken, beginning with the farthest from the middle: it covers thin parts, whatever the order (Eldar et
            al., The Farthest Point Strategy, 1997), and takes as many steps as there are points to keep.
          normalise: "sphere" moves the mean of the points to the origin and the farthest of them to a distance of 1,
            "centre" only moves, "none" keeps the places as they are.
          features: numbers of a point beside x, y and z.
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
        """[points, 3 + features] float32, with a flag for each point."""
        return InputSpec((self.config.points, 3 + self.config.features), "float32", mask_rank=1)

    def process(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Makes (values [points, 3 + features] float32, mask [points] bool). The same cloud gives the same points.

        Raises:
          ValueError: if `raw` is no cloud with so many features, or no point has a place.
        """
        values = as_points(raw)
        if values.shape[1] != 3 + self.config.features:
            found = values.shape[1] - 3
            raise ValueError(f"points with {found} features, where there should be {self.config.features}")
        values = values[np.isfinite(values[:, :3]).all(axis=1)]
        if not len(values):
            raise ValueError("no point has a place that is finite")
        places = values[:, :3]
        if self.config.normalise != "none":
            places = places - places.mean(axis=0)
        if self.config.normalise == "sphere":
            places = places / (np.linalg.norm(places, axis=1).max() or 1.0)
        kept = self._kept(places)
        array = np.zeros(self.spec.shape, np.float32)
        array[: len(kept), :3] = places[kept]
        array[: len(kept), 3:] = self.config.standardise(values[kept, 3:])
        return array, np.arange(self.config.points) < len(kept)

    def read(self, argument: str, where: str) -> np.ndarray:
        """Reads the PCD, BIN or NPY file at the path `argument`. Raises UserError."""
        data = read_bytes(argument, where, _REMEDY)
        try:
            return read_points(data, argument)
        except ValueError as error:
            raise UserError(where, f"{argument!r}: {error}", _REMEDY) from None

    def files(self) -> list[pathlib.Path]:
        """None."""
        return []

    def _kept(self, places: np.ndarray) -> np.ndarray:
        """Which of the places [n, 3] are kept."""
        if len(places) <= self.config.points:
            return np.arange(len(places))
        if self.config.choose == "stride":
            return np.arange(self.config.points) * len(places) // self.config.points
        return farthest_points(places, self.config.points)


def farthest_points(places: np.ndarray, count: int) -> np.ndarray:
    """int64 [count]: the rows of [n, 3], each the farthest from all before it, and the first from the middle."""
    kept = np.zeros(count, np.int64)
    distances = np.square(places - places.mean(axis=0)).sum(axis=1)
    kept[0] = distances.argmax()
    distances = np.full(len(places), np.inf)
    for number in range(1, count):
        distances = np.minimum(distances, np.square(places - places[kept[number - 1]]).sum(axis=1))
        kept[number] = distances.argmax()
    return kept
