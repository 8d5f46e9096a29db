"""Point clouds: PCD, the BIN files of KITTI, and NPY, with any features of the points."""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import PIL.Image

from mmjax.config import Within
from mmjax.modalities.point_files import SUFFIXES, as_points, read_points
from mmjax.prepare import fingerprints
from mmjax.prepare.kinds.base import File, Kind, Unreadable, pooled

_DIRECTIONS, _QUANTILES = 16, 33
_SIDE = 120
_CELLS, _VIEWS = 12, ((0, 1), (0, 2), (1, 2))


class PointsKind(Kind):
    """A point cloud; stored as float32 [n, 3 + features], without points whose place is not finite.

    Where clouds of one column differ in their features, those that one lacks are NaN in it.
    """

    fault_names = ("empty", "constant", "not_finite")
    suffixes = SUFFIXES

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """When a cloud is faulty, and when two are near duplicates. One without points, or all at one place, is faulty.

        Attributes:
          not_finite: share of the points whose place is not finite; what is above is faulty. Scanners write NaN where
            nothing came back.
          alike: 1 - the distance of two clouds as a part of their size. The distance is the mean one of their points,
            each sorted along several directions (after Rabin et al., Sliced Wasserstein Distance, 2011), so that the
            order of the points is nothing.
        """

        not_finite: Annotated[float, Within(0, 1)] = 0.5
        similarity: Annotated[float, Within(0, 1)] = 0.99

    def decode(self, value: Any) -> np.ndarray:
        try:
            if isinstance(value, File):
                return read_points(value.data, value.name)
            if isinstance(value, bytes):
                return read_points(value, "")
            if isinstance(value, (list, tuple, np.ndarray)):
                return as_points(np.asarray(value))
        except ValueError as error:
            raise Unreadable(str(error)) from None
        raise Unreadable(f"{type(value).__name__} is no point cloud")

    def measure(self, raw: np.ndarray) -> dict[str, float | int | str]:
        kept = _finite(raw)
        measured: dict[str, float | int | str] = {
            "points": len(kept),
            "features": raw.shape[1] - 3,
            "not_finite": 1 - len(kept) / len(raw),
            "radius": float(np.linalg.norm(kept[:, :3] - kept[:, :3].mean(axis=0), axis=1).max()) if len(kept) else 0.0,
            "bytes": 4 * kept.size,
        }
        for number, values in enumerate(kept[:, 3:].T):
            values = values[np.isfinite(values)]
            measured[f"feature_{number}/values"] = len(values)
            if len(values):
                measured[f"feature_{number}/mean"] = float(values.mean())
                measured[f"feature_{number}/std"] = float(values.std())
        return measured

    def faults(self, measured: Mapping[str, Any]) -> dict[str, str]:
        if not measured["points"]:
            return {"empty": "no point has a place that is finite"}
        if measured["not_finite"] > self.config.not_finite:
            return {"not_finite": f"{measured['not_finite']:.0%} of its points have no place that is finite"}
        if not measured["radius"]:
            return {"constant": f"its {measured['points']:,} points are at one place"}
        return {}

    def quality(self, measured: Mapping[str, Any]) -> float:
        return measured["points"]

    def signature(self, raw: np.ndarray) -> bytes | None:
        points = _finite(raw)
        if not len(points):
            return None
        # Features too, since clouds may differ in these alone, as fields on one mesh do.
        along = np.sort(np.concatenate([points[:, :3] @ _directions().T, np.nan_to_num(points[:, 3:])], axis=1), axis=0)
        # Between the outermost, which one stray point moves.
        shares = (np.arange(_QUANTILES) + 0.5) / _QUANTILES * len(along)
        return along[shares.astype(int)].astype(np.float32).tobytes()

    def hashes(self, signature: bytes) -> np.ndarray:
        quantiles = _read_quantiles(signature)[:, :_DIRECTIONS]
        # What all directions have in common is that they are sorted.
        return fingerprints.hash_vector((quantiles - quantiles.mean(axis=1, keepdims=True)).reshape(-1))

    def candidates(self, hashes: np.ndarray) -> np.ndarray:
        return fingerprints.candidates(hashes)

    def similarity(self, one: bytes, other: bytes) -> float:
        if len(one) != len(other):
            return 0.0
        first, second = _read_quantiles(one), _read_quantiles(other)
        # The place as a whole, and each feature on its own scale: all have to be alike.
        parts = [slice(_DIRECTIONS), *(slice(at, at + 1) for at in range(_DIRECTIONS, first.shape[1]))]
        return min(_likeness(first[:, part], second[:, part]) for part in parts)

    def features(self, raw: np.ndarray) -> np.ndarray | None:
        """How many points lie where, seen along each axis, whatever the size and the place; and the size."""
        places = _finite(raw)[:, :3]
        if not len(places):
            return None
        low, high = places.min(axis=0), places.max(axis=0)
        extent = float((high - low).max()) or 1.0
        centred = (places - (low + high) / 2) / extent
        edges = np.linspace(-0.5, 0.5, _CELLS + 1)
        views = [np.histogram2d(centred[:, one], centred[:, other], [edges, edges])[0] for one, other in _VIEWS]
        smooth = np.stack([_softened(view) for view in views]) / len(places)
        return np.append(np.sqrt(smooth).reshape(-1), 0.1 * np.log(extent)).astype(np.float32)

    def feature(self, tfds: Any, summary: Mapping[str, Any]) -> Any:
        return tfds.features.Tensor(shape=(None, 3 + _features(summary)), dtype=np.float32, encoding="bytes")

    def stored(self, raw: np.ndarray, summary: Mapping[str, Any]) -> np.ndarray:
        kept = _finite(raw)
        lacking = np.full((len(kept), 3 + _features(summary) - kept.shape[1]), np.nan)
        return np.concatenate([kept, lacking], axis=1).astype(np.float32)

    def placeholder(self, summary: Mapping[str, Any]) -> np.ndarray:
        return np.full((1, 3 + _features(summary)), np.nan, np.float32)

    def dataset_options(self, summary: Mapping[str, Any], numbers: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Features, and the mean and deviation of each over all points of the training split."""
        means, deviations = [], []
        for number in range(_features(summary)):
            counts = numbers.get(f"feature_{number}/values", np.zeros(0))
            spread = [numbers.get(f"feature_{number}/{name}", np.zeros_like(counts)) for name in ("mean", "std")]
            mean, deviation = pooled(counts, *spread)
            means.append(mean)
            deviations.append(deviation)
        return {"features": len(means), "mean": means, "std": deviations}

    def show(self, raw: np.ndarray) -> str:
        kept = _finite(raw)
        if not len(kept):
            return "<i>no points</i>"
        views = {"from above": (0, 1), "from the side": (0, 2)}
        pictures = [_drawn(kept[:, axes]) for axes in views.values()]
        buffer = io.BytesIO()
        PIL.Image.fromarray(np.concatenate(pictures, axis=1)).save(buffer, "PNG")
        data, title = base64.b64encode(buffer.getvalue()).decode(), f"{len(kept):,} points, {' and '.join(views)}"
        return f'<img alt="{title}" title="{title}" style="max-width: none" src="data:image/png;base64,{data}">'


def _finite(raw: np.ndarray) -> np.ndarray:
    return raw[np.isfinite(raw[:, :3]).all(axis=1)]


def _features(summary: Mapping[str, Any]) -> int:
    """Of all clouds of a column: what the one with the most has."""
    return int(summary["features"]["largest"]) if summary else 0


def _softened(counts: np.ndarray) -> np.ndarray:
    """Each cell [n, n] shared with its neighbours, so that a point at an edge may as well lie beyond it."""
    for axis in (0, 1):
        padded = np.pad(counts, [(1, 1) if each == axis else (0, 0) for each in (0, 1)])
        before, after = (np.take(padded, np.arange(len(counts)) + shift, axis=axis) for shift in (0, 2))
        counts = before / 4 + counts / 2 + after / 4
    return counts


def _read_quantiles(signature: bytes) -> np.ndarray:
    """[quantiles, directions + features]."""
    return np.frombuffer(signature, np.float32).reshape(_QUANTILES, -1).astype(np.float64)


def _likeness(one: np.ndarray, other: np.ndarray) -> float:
    """1 less the distance of two sets of quantiles over the extent of the smaller; two constants have to be equal."""
    size = min(float(np.sqrt(np.square(each - each.mean(axis=0)).mean())) for each in (one, other))
    distance = float(np.sqrt(np.square(one - other).mean()))
    return 1 - distance / size if size else float(not distance)


@functools.cache
def _directions() -> np.ndarray:
    """[directions, 3], as evenly over half a sphere as a spiral lays them."""
    height = (np.arange(_DIRECTIONS) + 0.5) / _DIRECTIONS
    turn = np.arange(_DIRECTIONS) * np.pi * (3 - 5**0.5)
    flat = np.sqrt(1 - height**2)
    return np.stack([flat * np.cos(turn), flat * np.sin(turn), height], axis=1)


def _drawn(places: np.ndarray) -> np.ndarray:
    """uint8 [side, side, 3]: points [n, 2] in one scale for both axes, darker where many lie, up is up."""
    low, high = places.min(axis=0), places.max(axis=0)
    extent = float((high - low).max()) or 1.0
    cells = (places - (low + high) / 2) / extent * (_SIDE - 3) + _SIDE / 2
    counts = np.zeros((_SIDE, _SIDE))
    np.add.at(counts, (_SIDE - 1 - cells[:, 1].astype(int), cells[:, 0].astype(int)), 1)
    # Dots of two pixels; nothing lies at the edge, from which a dot would go round.
    for axis in (0, 1):
        counts = counts + np.roll(counts, 1, axis)
    ink = np.where(counts > 0, 0.4 + 0.6 * np.log1p(counts) / np.log1p(counts.max()), 0)[..., None]
    return np.rint(255 + ink * (np.array([0, 50, 110]) - 255)).astype(np.uint8)
