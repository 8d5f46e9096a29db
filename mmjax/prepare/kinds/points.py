"""Point clouds: PCD, KITTI BIN and NPY files, with any number of features per point."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import PIL.Image

from mmjax.config import Formerly, Within
from mmjax.modalities.point_files import SUFFIXES, as_points, read_points
from mmjax.modalities.raw_files import fits_float32
from mmjax.prepare import fingerprints
from mmjax.prepare.kinds.array import ArrayKind
from mmjax.prepare.kinds.base import data_uri
from mmjax.prepare.kinds.image import png

# Signatures: projection directions, and quantiles per direction.
_DIRECTIONS, _QUANTILES = 16, 33
# Side of the image in the data card, in pixels.
_SIDE = 120
# Features: histogram cells per axis, and the axes of each projection.
_CELLS, _VIEWS = 12, ((0, 1), (0, 2), (1, 2))


class PointsKind(ArrayKind):
    """A point cloud, stored as [n, 3 + features] without points whose coordinates are not finite."""

    noun, measured, fixed = "point cloud", "feature", 3
    parse, check = staticmethod(read_points), staticmethod(as_points)
    fault_names = ("empty", "constant", "not_finite")
    suffixes = SUFFIXES

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Thresholds of the point-cloud checks. Clouds without points or of coinciding points are always faulty.

        Attributes:
          not_finite: fraction of points with non-finite coordinates above which a cloud is faulty. Scanners write NaN
            where no echo returned.
          similarity: 1 - sliced Wasserstein distance / size of the smaller cloud, at or above which two clouds are near
            duplicates. Independent of the order of the points (after Rabin et al., Wasserstein Barycenter and Its
            Application to Texture Mixing, 2011).
        """

        not_finite: Annotated[float, Within(0, 1)] = 0.5
        similarity: Annotated[float, Within(0, 1), Formerly("alike")] = 0.99

    def measure(self, raw: np.ndarray) -> dict[str, float | int | str]:
        kept = _finite(raw)
        return {
            "points": len(kept),
            "features": raw.shape[1] - 3,
            "not_finite": 1 - len(kept) / len(raw),
            "radius": float(np.linalg.norm(kept[:, :3] - kept[:, :3].mean(axis=0), axis=1).max()) if len(kept) else 0.0,
            "float32": int(fits_float32(kept)),
            "bytes": (4 if fits_float32(kept) else 8) * kept.size,
            **self.measure_columns(kept[:, 3:]),
        }

    def faults(self, measured: Mapping[str, Any]) -> dict[str, str]:
        if not measured["points"]:
            return {"empty": "no point has finite coordinates"}
        if measured["not_finite"] > self.config.not_finite:
            return {"not_finite": f"{measured['not_finite']:.0%} of points have non-finite coordinates"}
        if not measured["radius"]:
            return {"constant": f"all {measured['points']:,} points coincide"}
        return {}

    def quality(self, measured: Mapping[str, Any]) -> float:
        return measured["points"]

    def signature(self, raw: np.ndarray) -> bytes | None:
        points = _finite(raw)
        if not len(points):
            return None
        # Include the features: clouds may differ in these alone, such as fields on one mesh.
        projected = np.concatenate([points[:, :3] @ _directions().T, np.nan_to_num(points[:, 3:])], axis=1)
        projected.sort(axis=0)
        # Mid-bin quantiles: the extremes are sensitive to outliers.
        ranks = (np.arange(_QUANTILES) + 0.5) / _QUANTILES * len(projected)
        return projected[ranks.astype(int)].tobytes()

    def hashes(self, signature: bytes) -> np.ndarray:
        quantiles = _read_quantiles(signature)[:, :_DIRECTIONS]
        # Subtract the mean over directions: all columns are sorted, so their common trend carries no information.
        return fingerprints.hash_vector((quantiles - quantiles.mean(axis=1, keepdims=True)).reshape(-1))

    def candidates(self, hashes: np.ndarray) -> np.ndarray:
        return fingerprints.candidates(hashes)

    def similarity(self, a: bytes, b: bytes) -> float:
        if len(a) != len(b):
            return 0.0
        first, second = _read_quantiles(a), _read_quantiles(b)
        # Minimum over the coordinates, compared jointly, and each feature, compared on its own scale.
        parts = [slice(_DIRECTIONS), *(slice(i, i + 1) for i in range(_DIRECTIONS, first.shape[1]))]
        return min(_quantile_similarity(first[:, part], second[:, part]) for part in parts)

    def features(self, raw: np.ndarray) -> np.ndarray | None:
        """Smoothed histograms of the axis-aligned projections, invariant to position and scale, and the log extent."""
        xyz = _finite(raw)[:, :3]
        if not len(xyz):
            return None
        low, high = xyz.min(axis=0), xyz.max(axis=0)
        extent = float((high - low).max()) or 1.0
        centred = (xyz - (low + high) / 2) / extent
        edges = np.linspace(-0.5, 0.5, _CELLS + 1)
        views = [np.histogram2d(centred[:, i], centred[:, j], [edges, edges])[0] for i, j in _VIEWS]
        smooth = np.stack([_smooth(view) for view in views]) / len(xyz)
        return np.append(np.sqrt(smooth).reshape(-1), 0.1 * np.log(extent)).astype(np.float32)

    def stored(self, raw: np.ndarray, summary: Mapping[str, Any]) -> np.ndarray:
        return super().stored(_finite(raw), summary)

    def show(self, raw: np.ndarray) -> str:
        kept = _finite(raw)
        if not len(kept):
            return "<i>no points</i>"
        views = {"from above": (0, 1), "from the side": (0, 2)}
        images = [_scatter(kept[:, axes]) for axes in views.values()]
        uri = data_uri("image/png", png(PIL.Image.fromarray(np.concatenate(images, axis=1))))
        title = f"{len(kept):,} points, {' and '.join(views)}"
        return f'<img alt="{title}" title="{title}" style="max-width: none" src="{uri}">'


def _finite(raw: np.ndarray) -> np.ndarray:
    return raw[np.isfinite(raw[:, :3]).all(axis=1)]


def _smooth(counts: np.ndarray) -> np.ndarray:
    """Smooths a histogram [n, n] with the kernel (1/4, 1/2, 1/4), so that points near an edge count in both cells."""
    import scipy.ndimage

    return scipy.ndimage.convolve(counts, np.outer((1, 2, 1), (1, 2, 1)) / 16, mode="constant")


def _read_quantiles(signature: bytes) -> np.ndarray:
    """Decodes a signature to float64 [quantiles, directions + features]."""
    return np.frombuffer(signature).reshape(_QUANTILES, -1)


def _quantile_similarity(a: np.ndarray, b: np.ndarray) -> float:
    """1 - RMS distance / smaller standard deviation of two quantile arrays. Constants must be equal."""
    size = min(float(np.sqrt(np.square(x - x.mean(axis=0)).mean())) for x in (a, b))
    distance = float(np.sqrt(np.square(a - b).mean()))
    return 1 - distance / size if size else float(not distance)


@functools.cache
def _directions() -> np.ndarray:
    """Unit vectors [directions, 3] spread evenly over a hemisphere by a Fibonacci spiral."""
    height = (np.arange(_DIRECTIONS) + 0.5) / _DIRECTIONS
    angle = np.arange(_DIRECTIONS) * np.pi * (3 - 5**0.5)
    radius = np.sqrt(1 - height**2)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=1)


def _scatter(xy: np.ndarray) -> np.ndarray:
    """Scatter plot uint8 [side, side, 3] of points [n, 2], with equal axis scales; darker where points are denser."""
    low, high = xy.min(axis=0), xy.max(axis=0)
    extent = float((high - low).max()) or 1.0
    cells = (xy - (low + high) / 2) / extent * (_SIDE - 3) + _SIDE / 2
    counts = np.zeros((_SIDE, _SIDE))
    np.add.at(counts, (_SIDE - 1 - cells[:, 1].astype(int), cells[:, 0].astype(int)), 1)
    # Dots of 2 x 2 pixels. The scaling leaves a margin, so `roll` does not wrap any dot around.
    for axis in (0, 1):
        counts = counts + np.roll(counts, 1, axis)
    ink = np.where(counts > 0, 0.4 + 0.6 * np.log1p(counts) / np.log1p(counts.max()), 0)[..., None]
    return np.rint(255 + ink * (np.array([0, 50, 110]) - 255)).astype(np.uint8)
