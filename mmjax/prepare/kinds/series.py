"""Sensor series: NPY and CSV files of any length and channel count, possibly with missing values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np

from mmjax.config import Formerly, Within
from mmjax.modalities.raw_files import fits_float32
from mmjax.modalities.series import as_series, read_series
from mmjax.prepare import fingerprints
from mmjax.prepare.kinds.array import ArrayKind

# Steps that signatures and features resample to.
_STEPS = 64
# Channels used as features; later channels of wider series are ignored.
_FEATURE_CHANNELS = 16
_SHOWN_CHANNELS, _SHOWN_STEPS = 6, 160
_WIDTH, _HEIGHT = 160, 40


class SeriesKind(ArrayKind):
    """A series, stored as [n, channels], with NaN for missing values and for channels that other series have."""

    noun, measured = "series", "channel"
    parse, check = staticmethod(lambda data, name: read_series(data)), staticmethod(as_series)
    fault_names = ("empty", "constant", "not_finite")
    suffixes = (".npy", ".csv", ".tsv")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Thresholds of the series checks. Series without values, constant, or with infinite values are always faulty.

        Attributes:
          similarity: fraction of each series' variance, per channel, that the other must explain for the two to be near
            duplicates. Both are resampled to one length first; offset and scale are not fitted.
        """

        similarity: Annotated[float, Within(0, 1), Formerly("alike")] = 0.98

    def measure(self, raw: np.ndarray) -> dict[str, float | int | str]:
        finite = np.isfinite(raw)
        high, low = (np.where(finite, raw, bound) for bound in (-np.inf, np.inf))
        spans = (high.max(axis=0) - low.min(axis=0))[finite.any(axis=0)]
        return {
            "steps": len(raw),
            "channels": raw.shape[1],
            "missing": float(np.isnan(raw).mean()),
            "infinite": int(np.isinf(raw).sum()),
            "float32": int(fits_float32(raw)),
            "bytes": (4 if fits_float32(raw) else 8) * raw.size,
            "spread": float(spans.max(initial=0.0)),
            **self.measure_columns(raw),
        }

    def faults(self, measured: Mapping[str, Any]) -> dict[str, str]:
        values = sum(measured[f"channel_{channel}/values"] for channel in range(int(measured["channels"])))
        if measured["infinite"]:
            return {"not_finite": f"{measured['infinite']:,} values are infinite"}
        if not values:
            return {"empty": "all values are missing"}
        if not measured["spread"]:
            return {"constant": f"all channels are constant over {measured['steps']:,} steps"}
        return {}

    def quality(self, measured: Mapping[str, Any]) -> float:
        return measured["steps"] * measured["channels"] * (1 - measured["missing"])

    def signature(self, raw: np.ndarray) -> bytes:
        return _profile(raw).tobytes()

    def hashes(self, signature: bytes) -> np.ndarray:
        # Standardize each channel, or a large one, such as a time column that all series share, would dominate.
        profile = _read_profile(signature)
        std = profile.std(axis=0)
        return fingerprints.hash_vector(((profile - profile.mean(axis=0)) / np.where(std > 0, std, 1)).reshape(-1))

    def candidates(self, hashes: np.ndarray) -> np.ndarray:
        return fingerprints.candidates(hashes)

    def similarity(self, a: bytes, b: bytes) -> float:
        if len(a) != len(b):
            return 0.0
        first, second = _read_profile(a), _read_profile(b)
        error = np.square(first - second).sum(axis=0)
        variances = [np.square(profile - profile.mean(axis=0)).sum(axis=0) for profile in (first, second)]
        smaller = np.minimum(*variances)
        # Constant channels match only if equal. The least similar channel decides.
        explained = np.where(smaller > 0, 1 - error / np.where(smaller > 0, smaller, 1), error == 0)
        return float(explained.min())

    def features(self, raw: np.ndarray) -> np.ndarray:
        """Per channel: the standardized waveform, its magnitude spectrum, mean and standard deviation."""
        features = np.zeros((_FEATURE_CHANNELS, _STEPS + _STEPS // 2 + 2))
        for row, values in zip(features, _profile(raw).T, strict=False):
            mean, std = values.mean(), values.std()
            waveform = (values - mean) / (std or 1.0) / _STEPS**0.5
            spectrum = np.abs(np.fft.rfft(waveform)[1:]) / (_STEPS / 4) ** 0.5
            row[:] = [*waveform, *spectrum, np.arcsinh(mean), np.arcsinh(std)]
        return features.reshape(-1).astype(np.float32)

    def show(self, raw: np.ndarray) -> str:
        return "".join(_line_svg(channel) for channel in raw.T[:_SHOWN_CHANNELS])


def _profile(raw: np.ndarray) -> np.ndarray:
    """Resamples to [_STEPS, channels] by linear interpolation, which also fills missing values."""
    times = np.linspace(0, len(raw) - 1, _STEPS)
    profile = np.zeros((_STEPS, raw.shape[1]))
    for channel, values in enumerate(raw.T):
        valid = np.flatnonzero(np.isfinite(values))
        if len(valid):
            profile[:, channel] = np.interp(times, valid, values[valid])
    return profile


def _read_profile(signature: bytes) -> np.ndarray:
    return np.frombuffer(signature).reshape(_STEPS, -1)


def _line_svg(values: np.ndarray) -> str:
    """Line plot of a channel as an SVG, with gaps at missing values."""
    valid = np.isfinite(values)
    if not valid.any():
        return ""
    low, high = values[valid].min(), values[valid].max()
    # Subsample long series: enough steps to show the shape.
    steps = np.unique(np.linspace(0, len(values) - 1, _SHOWN_STEPS).astype(int))
    path, pen = "", "M"
    for step in steps:
        if not valid[step]:
            pen = "M"
            continue
        x = 1 + (_WIDTH - 2) * step / max(len(values) - 1, 1)
        y = _HEIGHT - 2 - (_HEIGHT - 4) * ((values[step] - low) / (high - low) if high > low else 0.5)
        path += f"{pen}{x:.1f} {y:.1f}"
        pen = "L"
    return f'<svg width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"><path d="{path}"/></svg>'
