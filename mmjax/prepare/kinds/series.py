"""Series of sensors: NPY and CSV, of any length and number of channels, some of their values missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np

from mmjax.config import Within
from mmjax.modalities.series import as_series, read_series
from mmjax.prepare import fingerprints
from mmjax.prepare.kinds.base import File, Kind, Unreadable, pooled

_PLACES = 64
# Channels that tell classes apart; those of a wider series that come after them do not.
_FEATURED = 16
_SHOWN_CHANNELS, _SHOWN_STEPS = 6, 160
_WIDTH, _HEIGHT = 160, 40


class SeriesKind(Kind):
    """A series; stored as float32 [n, channels], NaN where a value is missing.

    Where series of one column differ in their channels, those that one lacks are missing from it.
    """

    fault_names = ("empty", "constant", "not_finite")
    suffixes = (".npy", ".csv", ".tsv")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """When two series are near duplicates. Those without a value, of one value or with infinite ones are faulty.

        Attributes:
          alike: share of the variance of each of two series that the other must explain as it is, step by step once
            both are brought to one length.
        """

        similarity: Annotated[float, Within(0, 1)] = 0.98

    def decode(self, value: Any) -> np.ndarray:
        try:
            if isinstance(value, (File, bytes)):
                return read_series(value.data if isinstance(value, File) else value)
            if isinstance(value, (list, tuple, np.ndarray)):
                return as_series(np.asarray(value))
        except ValueError as error:
            raise Unreadable(str(error)) from None
        raise Unreadable(f"{type(value).__name__} is no series")

    def measure(self, raw: np.ndarray) -> dict[str, float | int | str]:
        there = np.isfinite(raw)
        measured: dict[str, float | int | str] = {
            "steps": len(raw),
            "channels": raw.shape[1],
            "missing": float(np.isnan(raw).mean()),
            "infinite": int(np.isinf(raw).sum()),
            "bytes": 4 * raw.size,
        }
        spread = 0.0
        for channel in range(raw.shape[1]):
            values = raw[there[:, channel], channel]
            measured[f"channel_{channel}/values"] = len(values)
            if len(values):
                measured[f"channel_{channel}/mean"] = float(values.mean())
                measured[f"channel_{channel}/std"] = float(values.std())
                spread = max(spread, float(values.max() - values.min()))
        return measured | {"spread": spread}

    def faults(self, measured: Mapping[str, Any]) -> dict[str, str]:
        values = sum(measured[f"channel_{channel}/values"] for channel in range(int(measured["channels"])))
        if measured["infinite"]:
            return {"not_finite": f"{measured['infinite']:,} of its values are infinite"}
        if not values:
            return {"empty": "all of its values are missing"}
        if not measured["spread"]:
            return {"constant": f"no channel changes in {measured['steps']:,} steps"}
        return {}

    def quality(self, measured: Mapping[str, Any]) -> float:
        return measured["steps"] * measured["channels"] * (1 - measured["missing"])

    def signature(self, raw: np.ndarray) -> bytes:
        return _profile(raw).astype(np.float32).tobytes()

    def hashes(self, signature: bytes) -> np.ndarray:
        # Each channel on its own scale: a column of times would say everything, and it is the same in all series.
        profile = _read_profile(signature)
        deviation = profile.std(axis=0)
        return fingerprints.hash_vector(
            ((profile - profile.mean(axis=0)) / np.where(deviation > 0, deviation, 1)).reshape(-1)
        )

    def candidates(self, hashes: np.ndarray) -> np.ndarray:
        return fingerprints.candidates(hashes)

    def similarity(self, one: bytes, other: bytes) -> float:
        if len(one) != len(other):
            return 0.0
        first, second = _read_profile(one), _read_profile(other)
        error = np.square(first - second).sum(axis=0)
        variances = [np.square(profile - profile.mean(axis=0)).sum(axis=0) for profile in (first, second)]
        least = np.minimum(*variances)
        # Two constants, which a user may keep, are alike where they are equal. All channels have to be alike.
        shares = np.where(least > 0, 1 - error / np.where(least > 0, least, 1), error == 0)
        return float(shares.min())

    def features(self, raw: np.ndarray) -> np.ndarray:
        """Of each channel its course, its frequencies without their phase, its level and its spread."""
        found = np.zeros((_FEATURED, _PLACES + _PLACES // 2 + 2))
        for row, values in zip(found, _profile(raw).T, strict=False):
            level, spread = values.mean(), values.std()
            course = (values - level) / (spread or 1.0) / _PLACES**0.5
            frequencies = np.abs(np.fft.rfft(course)[1:]) / (_PLACES / 4) ** 0.5
            row[:] = [*course, *frequencies, np.arcsinh(level), np.arcsinh(spread)]
        return found.reshape(-1).astype(np.float32)

    def feature(self, tfds: Any, summary: Mapping[str, Any]) -> Any:
        return tfds.features.Tensor(shape=(None, _channels(summary)), dtype=np.float32, encoding="bytes")

    def stored(self, raw: np.ndarray, summary: Mapping[str, Any]) -> np.ndarray:
        lacking = np.full((len(raw), _channels(summary) - raw.shape[1]), np.nan)
        return np.concatenate([raw, lacking], axis=1).astype(np.float32)

    def placeholder(self, summary: Mapping[str, Any]) -> np.ndarray:
        return np.full((1, _channels(summary)), np.nan, np.float32)

    def dataset_options(self, summary: Mapping[str, Any], numbers: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Channels, and the mean and deviation of each over all values of the training split."""
        found = []
        for channel in range(_channels(summary)):
            counts = numbers.get(f"channel_{channel}/values", np.zeros(0))
            spread = [numbers.get(f"channel_{channel}/{name}", np.zeros_like(counts)) for name in ("mean", "std")]
            found.append(pooled(counts, *spread))
        means, deviations = zip(*found, strict=True)
        return {"channels": len(found), "mean": list(means), "std": list(deviations)}

    def show(self, raw: np.ndarray) -> str:
        return "".join(_curve(channel) for channel in raw.T[:_SHOWN_CHANNELS])


def _profile(raw: np.ndarray) -> np.ndarray:
    """[places, channels] at moments that are evenly spread; what is missing lies on a line between its neighbours."""
    moments = np.linspace(0, len(raw) - 1, _PLACES)
    profile = np.zeros((_PLACES, raw.shape[1]))
    for channel, values in enumerate(raw.T):
        there = np.flatnonzero(np.isfinite(values))
        if len(there):
            profile[:, channel] = np.interp(moments, there, values[there])
    return profile


def _read_profile(signature: bytes) -> np.ndarray:
    return np.frombuffer(signature, np.float32).reshape(_PLACES, -1).astype(np.float64)


def _channels(summary: Mapping[str, Any]) -> int:
    """Of all series of a column: what the one with the most has."""
    return int(summary["channels"]["largest"]) if summary else 1


def _curve(values: np.ndarray) -> str:
    """A channel as an SVG, with gaps where values are missing."""
    there = np.isfinite(values)
    if not there.any():
        return ""
    low, high = values[there].min(), values[there].max()
    # Of a long series the steps that are drawn are too few to see each, but not its form.
    steps = np.unique(np.linspace(0, len(values) - 1, _SHOWN_STEPS).astype(int))
    path, pen = "", "M"
    for step in steps:
        if not there[step]:
            pen = "M"
            continue
        x = 1 + (_WIDTH - 2) * step / max(len(values) - 1, 1)
        y = _HEIGHT - 2 - (_HEIGHT - 4) * ((values[step] - low) / (high - low) if high > low else 0.5)
        path += f"{pen}{x:.1f} {y:.1f}"
        pen = "L"
    return f'<svg width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"><path d="{path}"/></svg>'
