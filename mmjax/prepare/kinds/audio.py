"""Audio: WAV, FLAC, OGG and MP3 files of any sample rate and channel count."""

from __future__ import annotations

import dataclasses
import functools
import io
import warnings
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np

from mmjax.config import AtLeast, Count, Formerly, Within
from mmjax.modalities.filters import resample
from mmjax.modalities.recordings import Waveform, check_rate, mono, read_recording, to_int16
from mmjax.prepare import pictures
from mmjax.prepare.kinds.base import File, Kind, Unreadable, data_uri

# Signatures and features: sample rate in Hz, and compared duration in seconds.
_RATE = 8000
_SECONDS = 4.0
# Seconds of a recording that signatures and features read.
_MAX_SECONDS = 600
# STFT window and hop in samples, and mel bands.
_WINDOW, _HOP, _BANDS = 256, 80, 32
# Leading and trailing silence is trimmed: samples this many dB below the peak.
_TRIM_DB = 30.0
_SHOWN_SECONDS = 10.0


class AudioKind(Kind):
    """A recording, stored as [samples, channels] with its sample rate.

    The column is int16 if that is exact for all of its recordings, or if they are reduced; else float32.
    """

    fault_names = ("silent", "clipped")
    suffixes = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Thresholds of the audio checks.

        Attributes:
          silent: peak level in dBFS below which a recording is silent.
          clipped: fraction of clipped samples above which a recording is clipped. A sample counts as clipped if it lies
            in a run of at least two at the recording's own maximum or minimum.
          similarity: correlation of two waveforms at the best lag, at or above which they are near duplicates.
        """

        silent: float = -60.0
        clipped: Annotated[float, AtLeast(0)] = 0.001
        similarity: Annotated[float, Within(0, 1), Formerly("alike")] = 0.94

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Reduce:
        """Downsampling of recordings.

        Attributes:
          rate: maximum sample rate in Hz; recordings above it are resampled. None keeps every rate.
          mono: average the channels to one.
        """

        rate: Count | None = None
        mono: bool = False

    def decode(self, value: Any) -> Waveform:
        try:
            if isinstance(value, (File, bytes)):
                file = value if isinstance(value, File) else File("", value)
                return read_recording(file.data, file.name)
            if isinstance(value, (tuple, list)) and len(value) == 2:
                samples, rate = np.asarray(value[0]), int(value[1])
                mono(samples)
                check_rate(rate)
                return samples, rate
        except ValueError as error:
            raise Unreadable(str(error)) from None
        raise Unreadable(f"{type(value).__name__} is not an audio file or a pair (samples, rate)")

    def reduced(self, raw: Waveform) -> Waveform:
        samples, rate = raw
        if self.reduce.mono and samples.ndim == 2:
            samples = mono(samples)
        if self.reduce.rate is None or rate <= self.reduce.rate:
            return raw if samples is raw[0] else (samples, rate)
        channels = [resample(mono(channel), rate, self.reduce.rate) for channel in np.atleast_2d(samples.T)]
        return (channels[0] if samples.ndim == 1 else np.stack(channels, axis=1)), self.reduce.rate

    def measure_whole(self, raw: Waveform) -> dict[str, float | int | str]:
        # After resampling, clipped samples no longer lie at the limit.
        return {"clipped": _clipped(raw[0])}

    def measure(self, raw: Waveform) -> dict[str, float | int | str]:
        samples, rate = raw
        values = mono(samples)
        exact = samples.dtype == np.int16 or self.reduce != type(self.reduce)()
        middle = float(np.median(values))
        # In blocks, since float64 of a long recording would take most of the memory.
        energy = sum(float(np.square(part, dtype=np.float64).sum()) for part in np.split(values, _blocks(len(values))))
        return {
            "seconds": len(values) / rate,
            "rate": rate,
            "channels": 1 if samples.ndim == 1 else samples.shape[1],
            "mean": float(values.mean()),
            "std": float(values.std()),
            "peak_decibels": _decibels(max(float(values.max()) - middle, middle - float(values.min()))),
            "level_decibels": _decibels((energy / len(values)) ** 0.5),
            "clipped": _clipped(samples),
            "int16": int(exact),
            "bytes": (2 if exact else 4) * samples.size,
        }

    def faults(self, measured: Mapping[str, Any]) -> dict[str, str]:
        if measured["peak_decibels"] < self.config.silent:
            return {"silent": f"peak level is {measured['peak_decibels']:.0f} dBFS"}
        if measured["clipped"] > self.config.clipped:
            return {"clipped": f"{measured['clipped']:.1%} of samples are clipped"}
        return {}

    def quality(self, measured: Mapping[str, Any]) -> float:
        return measured["seconds"] * measured["rate"]

    def signature(self, raw: Waveform) -> bytes | None:
        values = _compared(raw)
        values = values - values.mean()
        level = np.abs(values)
        loud = np.flatnonzero(level > level.max(initial=0) * 10 ** (-_TRIM_DB / 20))
        if len(loud) < _WINDOW:
            return None
        values = values[loud[0] : loud[-1] + 1]
        # The spectrogram is for `hashes`, the waveform for `similarity`.
        image = np.rint(_spectrogram_image(values)).astype(np.uint8)
        waveform = np.rint(values[: int(_SECONDS * _RATE)] * (127 / level.max())).astype(np.int8)
        return image.tobytes() + waveform.tobytes()

    def hashes(self, signature: bytes) -> np.ndarray:
        size = pictures.SIDE**2
        image = np.frombuffer(signature[:size], np.uint8).reshape(pictures.SIDE, -1)
        return pictures.hash_image(image, crop_height=False)

    def candidates(self, hashes: np.ndarray) -> np.ndarray:
        return pictures.candidates(hashes, close=16)

    def similarity(self, a: bytes, b: bytes) -> float:
        size = pictures.SIDE**2
        first, second = (np.frombuffer(signature[size:], np.int8).astype(np.float64) for signature in (a, b))
        return _correlation(first, second)

    def features(self, raw: Waveform) -> np.ndarray:
        values = _compared(raw)
        level = np.abs(values)
        loud = np.flatnonzero(level > level.max() * 10 ** (-_TRIM_DB / 20))
        values = values[loud[0] : loud[-1] + 1] if len(loud) else values
        spectrogram = _spectrogram(values)
        # Level-normalized cepstra, averaged to 20 time steps for any duration.
        cepstra = _cepstra() @ (spectrogram - spectrogram.mean())
        centres = np.linspace(0, cepstra.shape[1] - 1, 20)
        window = np.abs(centres[:, None] - np.arange(cepstra.shape[1])) < max(1.0, cepstra.shape[1] / 30)
        cepstra = cepstra @ (window / window.sum(axis=1, keepdims=True)).T
        # Liftering: higher cepstra are smaller but equally informative (Juang, Rabiner and Wilpon, 1987).
        return ((1 + np.arange(len(cepstra)))[:, None] * cepstra).reshape(-1).astype(np.float32)

    def tfds_feature(self, tfds: Any, summary: Mapping[str, Any]) -> Any:
        samples = tfds.features.Tensor(shape=(None, None), dtype=_storage_dtype(summary), encoding="bytes")
        return tfds.features.FeaturesDict({"samples": samples, "rate": tfds.features.Scalar(dtype=np.int32)})

    def stored(self, raw: Waveform, summary: Mapping[str, Any]) -> dict[str, Any]:
        samples, rate = raw
        if _storage_dtype(summary) == np.int16:
            samples = to_int16(samples)
        elif samples.dtype == np.int16:
            samples = samples / np.float32(32768)
        return {"samples": samples.astype(_storage_dtype(summary)).reshape(len(samples), -1), "rate": rate}

    def placeholder(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        return {"samples": np.zeros((1, 1), _storage_dtype(summary)), "rate": 0}

    def restore(self, stored: Mapping[str, Any]) -> Waveform:
        samples = stored["samples"]
        return (samples[:, 0] if samples.shape[1] == 1 else samples), int(stored["rate"])

    def show(self, raw: Waveform) -> str:
        samples = to_int16(raw[0][: int(_SHOWN_SECONDS * raw[1])])
        uri = data_uri("audio/wav", _wav(samples.reshape(len(samples), -1), raw[1]))
        return f'{_envelope(mono(samples))}<audio controls preload="none" src="{uri}"></audio>'


def _compared(raw: Waveform) -> np.ndarray:
    """The first `_MAX_SECONDS` of a recording at `_RATE`, mono float32.

    A small file may last for days: its header may declare one sample per second.
    """
    samples, rate = raw
    return resample(mono(samples[: _MAX_SECONDS * rate]), rate, _RATE)


def _blocks(length: int) -> range:
    """Boundaries between blocks of 2**20 elements."""
    return range(2**20, length, 2**20)


def _storage_dtype(summary: Mapping[str, Any]) -> Any:
    """Returns int16 if the measure "int16" is 1 in all rows, else float32."""
    return np.int16 if summary.get("int16", {"smallest": 1})["smallest"] else np.float32


def _decibels(level: float) -> float:
    return 20 * float(np.log10(max(level, 1e-6)))


def _clipped(samples: np.ndarray) -> float:
    """Fraction of clipped samples in [n] or [n, channels]; the maximum over channels.

    Counts runs of at least two samples at the maximum or minimum, provided that more samples lie at the limit than
    within four quantization steps below it. Unclipped audio rarely reaches the limit, even at 8 bits; a pure tone
    has many samples at its peak, but even more just below it.
    """
    worst = 0.0
    for channel in samples.reshape(len(samples), -1).T:
        values = mono(channel)
        tolerance = float(np.abs(values).max()) * 1e-3
        clipped = 0
        for _ in range(2):
            limit = values.max()
            at_limit = values >= limit - tolerance
            if tolerance and not at_limit.all():
                below = float(values.max(where=~at_limit, initial=-np.inf))
                step = max(tolerance, limit - tolerance - below)
                padded = np.concatenate([[False], at_limit, [False]])
                edges = np.flatnonzero(padded[1:] != padded[:-1])
                lengths = edges[1::2] - edges[::2]
                if at_limit.sum() > np.count_nonzero((values >= limit - tolerance - 4 * step) & ~at_limit):
                    clipped += int(lengths[lengths >= 2].sum())
            # The minimum is the maximum of the negated samples.
            np.negative(values, out=values)
        worst = max(worst, clipped / len(values))
    return worst


def _spectrogram(values: np.ndarray) -> np.ndarray:
    """Mel spectrogram [bands, frames] in dB relative to its maximum, clipped at -60."""
    values = np.pad(values, (0, max(0, _WINDOW - len(values))))
    frames = np.lib.stride_tricks.sliding_window_view(values, _WINDOW)[::_HOP] * np.hanning(_WINDOW)
    power = np.square(np.abs(np.fft.rfft(frames))) @ _mel().T
    decibels = 10 * np.log10(np.maximum(power, 1e-12))
    return np.maximum(decibels - decibels.max(), -60).T


def _spectrogram_image(values: np.ndarray) -> np.ndarray:
    """Spectrogram resized to [SIDE, SIDE] for any duration, scaled to 0 to 255."""
    import PIL.Image

    spectrogram = (_spectrogram(values) + 60) * (255 / 60)
    image = PIL.Image.fromarray(spectrogram.astype(np.float32))
    return np.clip(np.asarray(image.resize((pictures.SIDE, pictures.SIDE), PIL.Image.Resampling.BILINEAR)), 0, 255)


@functools.cache
def _mel() -> np.ndarray:
    """Triangular mel filters [bands, frequencies], from 60 Hz to the Nyquist frequency."""
    mel = lambda hertz: 1127 * np.log1p(hertz / 700)  # noqa: E731
    edges = 700 * np.expm1(np.linspace(mel(60), mel(_RATE / 2), _BANDS + 2) / 1127)
    frequencies = np.fft.rfftfreq(_WINDOW, 1 / _RATE)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rising, falling))


@functools.cache
def _cepstra() -> np.ndarray:
    """DCT matrix [16, bands] that maps mel bands in dB to cepstral coefficients."""
    return np.cos(np.pi / _BANDS * np.outer(np.arange(16), np.arange(_BANDS) + 0.5)) / _BANDS


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Maximum absolute cross-correlation, 0 to 1, over lags where at least half of the shorter signal overlaps."""
    if len(a) < len(b):
        a, b = b, a
    min_overlap = max(1, len(b) // 2)
    size = 1 << int(np.ceil(np.log2(len(a) + len(b))))
    products = np.fft.irfft(np.fft.rfft(a, size) * np.conj(np.fft.rfft(b, size)), size)
    # Lag s aligns b[0] with a[s].
    lags = np.arange(min_overlap - len(b), len(a) - min_overlap + 1)
    energies = [np.concatenate([[0.0], np.cumsum(np.square(values))]) for values in (a, b)]
    first, last = np.maximum(lags, 0), np.minimum(lags + len(b), len(a))
    energy = (energies[0][last] - energies[0][first]) * (energies[1][last - lags] - energies[1][first - lags])
    # Ignore lags where little of the signals' energy overlaps: their correlation is noise.
    enough = energy > 0.05 * energies[0][-1] * energies[1][-1]
    scores = products[lags % size] / np.sqrt(np.where(enough, energy, np.inf))
    return float(np.abs(scores).max(initial=0))


def _wav(samples: np.ndarray, rate: int) -> bytes:
    import scipy.io.wavfile

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scipy.io.wavfile.write(buffer, rate, samples)
    return buffer.getvalue()


def _envelope(values: np.ndarray) -> str:
    """Envelope of a waveform as an SVG."""
    parts = np.array_split(values, min(80, len(values)))
    heights = [max(1.0, 20 * float(np.abs(part).max())) for part in parts]
    bars = "".join(f"M{2 * x + 1} {20 - h:.1f}V{20 + h:.1f}" for x, h in enumerate(heights))
    return f'<svg width="160" height="40" viewBox="0 0 160 40"><path d="{bars}"/></svg>'
