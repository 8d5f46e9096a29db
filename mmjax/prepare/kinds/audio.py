"""Audio: WAV, FLAC, OGG and MP3, of any rate and number of channels."""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import struct
import warnings
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np

from mmjax.config import AtLeast, Count, Within
from mmjax.errors import UserError
from mmjax.modalities.audio import Waveform, mono
from mmjax.modalities.filters import resample
from mmjax.prepare import pictures
from mmjax.prepare.kinds.base import File, Kind, Unreadable

_RATE = 8000
_SECONDS = 4.0
_WINDOW, _HOP, _BANDS = 256, 80, 32
_TRIM = 30.0
_SHOWN_SECONDS = 10.0


class AudioKind(Kind):
    """A recording; stored as int16 [samples, channels] with its rate: 24 bits and floating point are rounded."""

    fault_names = ("silent", "clipped")
    suffixes = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """When a recording is faulty, and when two are near duplicates.

        Attributes:
          silent: in dB of full scale; a recording whose peak is below is silent.
          clipped: share of the samples that lie, in runs of at least two, at the recording's own largest or smallest
            value; what is above is clipped.
          alike: correlation of two waveforms, at the best shift, above which they are one recording.
        """

        silent: float = -60.0
        clipped: Annotated[float, AtLeast(0)] = 0.001
        similarity: Annotated[float, Within(0, 1)] = 0.94

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Reduce:
        """How much of a recording is kept.

        Attributes:
          rate: in Hz, to which recordings of a higher rate are resampled; by default they keep theirs.
          mono: whether the channels become one, their mean.
        """

        rate: Count | None = None
        mono: bool = False

    def decode(self, value: Any) -> Waveform:
        if isinstance(value, File):
            return _read(value)
        if isinstance(value, bytes):
            return _read(File("", value))
        if isinstance(value, (tuple, list)) and len(value) == 2:
            samples, rate = np.asarray(value[0]), int(value[1])
            try:
                mono(samples)
            except ValueError as error:
                raise Unreadable(str(error)) from None
            return samples, rate
        raise Unreadable(f"{type(value).__name__} is no audio file, and no (samples, rate)")

    def reduced(self, raw: Waveform) -> Waveform:
        samples, rate = raw
        if self.reduce.mono and samples.ndim == 2:
            samples = mono(samples)
        if self.reduce.rate is None or rate <= self.reduce.rate:
            return raw if samples is raw[0] else (samples, rate)
        channels = [resample(mono(channel), rate, self.reduce.rate) for channel in np.atleast_2d(samples.T)]
        return (channels[0] if samples.ndim == 1 else np.stack(channels, axis=1)), self.reduce.rate

    def measure_whole(self, raw: Waveform) -> dict[str, float | int | str]:
        # Resampled, what was cut off at the limit no longer lies at it.
        return {"clipped": _clipped(raw[0])}

    def measure(self, raw: Waveform) -> dict[str, float | int | str]:
        samples, rate = raw
        values = mono(samples)
        level = float(np.sqrt(np.square(values, dtype=np.float64).mean()))
        return {
            "seconds": len(values) / rate,
            "rate": rate,
            "channels": 1 if samples.ndim == 1 else samples.shape[1],
            "mean": float(values.mean()),
            "std": float(values.std()),
            "peak_decibels": _decibels(float(np.abs(values - np.median(values)).max())),
            "level_decibels": _decibels(level),
            "clipped": _clipped(samples),
            "bytes": 2 * samples.size,
        }

    def faults(self, measured: Mapping[str, Any]) -> dict[str, str]:
        if measured["peak_decibels"] < self.config.silent:
            return {"silent": f"its peak is {measured['peak_decibels']:.0f} dB"}
        if measured["clipped"] > self.config.clipped:
            return {"clipped": f"{measured['clipped']:.1%} of its samples are at the limit"}
        return {}

    def quality(self, measured: Mapping[str, Any]) -> float:
        return measured["seconds"] * measured["rate"]

    def signature(self, raw: Waveform) -> bytes | None:
        values = resample(mono(raw[0]), raw[1], _RATE)
        values = values - values.mean()
        level = np.abs(values)
        loud = np.flatnonzero(level > level.max(initial=0) * 10 ** (-_TRIM / 20))
        if len(loud) < _WINDOW:
            return None
        values = values[loud[0] : loud[-1] + 1]
        # What the whole sounds like, for the hash, and samples for the comparison.
        drawn = np.rint(_drawn(values)).astype(np.uint8)
        waveform = np.rint(values[: int(_SECONDS * _RATE)] * (127 / level.max())).astype(np.int8)
        return drawn.tobytes() + waveform.tobytes()

    def hashes(self, signature: bytes) -> np.ndarray:
        size = pictures.SIDE**2
        image = np.frombuffer(signature[:size], np.uint8).reshape(pictures.SIDE, -1)
        return pictures.hash_image(image, crop_height=False)

    def candidates(self, hashes: np.ndarray) -> np.ndarray:
        return pictures.candidates(hashes, close=16)

    def similarity(self, one: bytes, other: bytes) -> float:
        size = pictures.SIDE**2
        first, second = (np.frombuffer(signature[size:], np.int8).astype(np.float64) for signature in (one, other))
        return _correlation(first, second)

    def features(self, raw: Waveform) -> np.ndarray:
        values = resample(mono(raw[0]), raw[1], _RATE)
        level = np.abs(values)
        loud = np.flatnonzero(level > level.max() * 10 ** (-_TRIM / 20))
        values = values[loud[0] : loud[-1] + 1] if len(loud) else values
        spectrogram = _spectrogram(values)
        # Cepstra without the loudness, at as many moments for each recording.
        cepstra = _cepstra() @ (spectrogram - spectrogram.mean())
        moments = np.linspace(0, cepstra.shape[1] - 1, 20)
        around = np.abs(moments[:, None] - np.arange(cepstra.shape[1])) < max(1.0, cepstra.shape[1] / 30)
        cepstra = cepstra @ (around / around.sum(axis=1, keepdims=True)).T
        # Higher cepstra are smaller and tell as much (a lifter: Juang, Rabiner and Wilpon, 1987).
        return ((1 + np.arange(len(cepstra)))[:, None] * cepstra).reshape(-1).astype(np.float32)

    def feature(self, tfds: Any, summary: Mapping[str, Any]) -> Any:
        samples = tfds.features.Tensor(shape=(None, None), dtype=np.int16, encoding="bytes")
        return tfds.features.FeaturesDict({"samples": samples, "rate": tfds.features.Scalar(dtype=np.int32)})

    def stored(self, raw: Waveform, summary: Mapping[str, Any]) -> dict[str, Any]:
        return {"samples": _sixteen_bits(raw[0]).reshape(len(raw[0]), -1), "rate": raw[1]}

    def placeholder(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        return {"samples": np.zeros((1, 1), np.int16), "rate": 0}

    def restore(self, stored: Mapping[str, Any]) -> Waveform:
        samples = stored["samples"]
        return (samples[:, 0] if samples.shape[1] == 1 else samples), int(stored["rate"])

    def show(self, raw: Waveform) -> str:
        samples = _sixteen_bits(raw[0][: int(_SHOWN_SECONDS * raw[1])])
        data = base64.b64encode(_wav(samples.reshape(len(samples), -1), raw[1])).decode()
        return f'{_curve(mono(samples))}<audio controls preload="none" src="data:audio/wav;base64,{data}"></audio>'


def _read(file: File) -> Waveform:
    try:
        import soundfile
    except (ImportError, OSError):
        raise UserError("audio", f"{file.name!r} needs the package soundfile", "pip install 'mmjax[data]'") from None
    if file.data[:4] == b"RIFF" and len(file.data) > 8:
        # libsndfile reads what there is of a WAV file that was cut short, without a word.
        promised = struct.unpack("<I", file.data[4:8])[0] + 8
        # Streams are written with a size of 0 or of all ones.
        if 8 < promised < 0xFFFFFFF0 and len(file.data) < promised - 1:
            raise Unreadable(f"cut short: {len(file.data):,} of {promised:,} bytes")
    try:
        with soundfile.SoundFile(io.BytesIO(file.data)) as opened:
            sixteen = opened.subtype == "PCM_16"
            frames = opened.frames
            samples = opened.read(dtype="int16" if sixteen else "float32")
            rate = opened.samplerate
    # soundfile raises its own errors, RuntimeErrors and, for sizes that are nonsense, MemoryErrors.
    except Exception as error:
        raise Unreadable(str(error).replace("Error opening <_io.BytesIO object>: ", "")) from None
    if len(samples) < frames:
        raise Unreadable(f"cut short: {len(samples):,} of {frames:,} samples")
    try:
        mono(samples)
    except ValueError as error:
        raise Unreadable(str(error)) from None
    return samples, int(rate)


def _decibels(level: float) -> float:
    return 20 * float(np.log10(max(level, 1e-6)))


def _clipped(samples: np.ndarray) -> float:
    """The share of samples [n] or [n, channels] that a limiter cut off, of the channel that has the most of them.

    They lie in runs of at least two at the largest or smallest value, and are more than all within four steps below:
    without a limiter few reach the end of the scale, even of one as coarse as that of 8 bits. A pure tone stays long at
    its peak, and a little longer just below.
    """
    found = 0.0
    for channel in samples.reshape(len(samples), -1).T:
        values = mono(channel)
        near = float(np.abs(values).max()) * 1e-3
        share = 0
        for side in (values, -values):
            limit = side.max()
            here = side >= limit - near
            below = side[~here]
            if not near or not len(below):
                continue
            step = max(near, limit - near - float(below.max()))
            at = np.concatenate([[False], here, [False]])
            edges = np.flatnonzero(at[1:] != at[:-1])
            lengths = edges[1::2] - edges[::2]
            if here.sum() > np.count_nonzero(below >= limit - near - 4 * step):
                share += int(lengths[lengths >= 2].sum())
        found = max(found, share / len(values))
    return found


def _spectrogram(values: np.ndarray) -> np.ndarray:
    """[bands, frames], in dB between 0 and 60 below the loudest."""
    values = np.pad(values, (0, max(0, _WINDOW - len(values))))
    frames = np.lib.stride_tricks.sliding_window_view(values, _WINDOW)[::_HOP] * np.hanning(_WINDOW)
    power = np.square(np.abs(np.fft.rfft(frames))) @ _mel().T
    decibels = 10 * np.log10(np.maximum(power, 1e-12))
    return np.maximum(decibels - decibels.max(), -60).T


def _drawn(values: np.ndarray) -> np.ndarray:
    """The spectrogram as a picture [SIDE, SIDE], 0 to 255, whatever the length."""
    import PIL.Image

    spectrogram = (_spectrogram(values) + 60) * (255 / 60)
    picture = PIL.Image.fromarray(spectrogram.astype(np.float32))
    return np.clip(np.asarray(picture.resize((pictures.SIDE, pictures.SIDE), PIL.Image.Resampling.BILINEAR)), 0, 255)


@functools.cache
def _mel() -> np.ndarray:
    """[bands, frequencies]: triangles that are equally wide on the mel scale, from 60 Hz to half the rate."""
    mel = lambda hertz: 1127 * np.log1p(hertz / 700)  # noqa: E731
    edges = 700 * np.expm1(np.linspace(mel(60), mel(_RATE / 2), _BANDS + 2) / 1127)
    frequencies = np.fft.rfftfreq(_WINDOW, 1 / _RATE)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rising, falling))


@functools.cache
def _cepstra() -> np.ndarray:
    return np.cos(np.pi / _BANDS * np.outer(np.arange(16), np.arange(_BANDS) + 0.5)) / _BANDS


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """The largest correlation over all shifts at which at least half of the shorter one overlaps; -1 to 1."""
    if len(one) < len(other):
        one, other = other, one
    least = max(1, len(other) // 2)
    size = 1 << int(np.ceil(np.log2(len(one) + len(other))))
    products = np.fft.irfft(np.fft.rfft(one, size) * np.conj(np.fft.rfft(other, size)), size)
    # Shift s lays other[0] on one[s].
    shifts = np.arange(least - len(other), len(one) - least + 1)
    energies = [np.concatenate([[0.0], np.cumsum(np.square(values))]) for values in (one, other)]
    first, last = np.maximum(shifts, 0), np.minimum(shifts + len(other), len(one))
    energy = (energies[0][last] - energies[0][first]) * (energies[1][last - shifts] - energies[1][first - shifts])
    # Where hardly anything of either overlaps, a product says nothing.
    enough = energy > 0.05 * energies[0][-1] * energies[1][-1]
    scores = products[shifts % size] / np.sqrt(np.where(enough, energy, np.inf))
    return float(np.abs(scores).max(initial=0))


def _sixteen_bits(samples: np.ndarray) -> np.ndarray:
    if samples.dtype == np.int16:
        return samples
    # Floating point knows no limit: what goes beyond full scale becomes quieter as a whole.
    return np.rint(samples / max(1.0, float(np.abs(samples).max())) * 32767).astype(np.int16)


def _wav(samples: np.ndarray, rate: int) -> bytes:
    import scipy.io.wavfile

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scipy.io.wavfile.write(buffer, rate, samples)
    return buffer.getvalue()


def _curve(values: np.ndarray) -> str:
    """The envelope of a waveform as an SVG."""
    parts = np.array_split(values, min(80, len(values)))
    heights = [max(1.0, 20 * float(np.abs(part).max())) for part in parts]
    bars = "".join(f"M{2 * x + 1} {20 - h:.1f}V{20 + h:.1f}" for x, h in enumerate(heights))
    return f'<svg width="160" height="40" viewBox="0 0 160 40"><path d="{bars}"/></svg>'
