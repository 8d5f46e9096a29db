"""Audio: any recording becomes float32 samples of one rate and one length, with a mask of what is real."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import warnings
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np

from mmjax.config import AtLeast, Count
from mmjax.errors import UserError
from mmjax.modalities.filters import resample
from mmjax.tokens import InputSpec

Waveform = tuple[np.ndarray, int]


class Audio:
    """Makes recordings of any rate, length and number of channels into waveforms of one shape.

    Raw data is (samples, rate in Hz) with samples [n] or [n, channels], int16 or floating with full scale 1.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """How a recording becomes an array.

        Attributes:
          sample_rate: in Hz; other rates are resampled to it.
          seconds: the length; what is longer is cut at its end, what is shorter is padded and masked.
          normalise: the loudness: "rms" makes the root mean square 0.1, "peak" makes the largest value 1, "none" keeps
            it. Silence stays silence.
          trim: None, or how many decibels below the peak counts as silence, which is then cut from both ends. It makes
            recordings, which begin with a pause, resemble clips that begin with the word.
          chunk: samples in an element of recordings that are packed, as many as a token of the encoder stands for.
            They keep their length, up to `seconds`.
        """

        sample_rate: Count = 16_000
        seconds: Annotated[float, AtLeast(0.001)] = 1.0
        normalise: Literal["none", "peak", "rms"] = "rms"
        trim: Annotated[float, AtLeast(1.0)] | None = None
        chunk: Count | None = None

    measures: ClassVar[tuple[str, ...]] = ("seconds",)

    def __init__(self, config: Config):
        self.config = config
        self._length = max(1, round(config.seconds * config.sample_rate))
        self._chunk = config.chunk or 0

    @property
    def spec(self) -> InputSpec:
        """[samples] float32, with a flag for each sample."""
        return InputSpec((self._length,), "float32", mask_rank=1, details={"sample_rate": self.config.sample_rate})

    def process(self, raw: Waveform) -> tuple[np.ndarray, np.ndarray]:
        """Makes (values [samples] float32, mask [samples] bool) of (samples [n] or [n, channels], rate in Hz).

        Raises:
          ValueError: if there are no samples, or some are not finite, or the shape or type is none of those above.
        """
        samples = self._samples(raw, self._length)
        values, mask = np.zeros(self._length, np.float32), np.zeros(self._length, bool)
        values[: len(samples)], mask[: len(samples)] = samples, True
        return values, mask

    def packed(self, budget: int) -> InputSpec:
        """[budget, chunk] float32, with positions (index of the chunk, samples of its recording)."""
        if not self._chunk:
            problem = "recordings are packed in chunks, and chunk is missing"
            raise ValueError(f"{problem}; set it to the samples that a token of the encoder stands for")
        details = {"sample_rate": self.config.sample_rate, "chunk": self._chunk, "samples": self._length}
        return InputSpec((budget, self._chunk), "float32", 1, details, axes=2)

    def lengths(self, measured: Mapping[str, np.ndarray], budget: int) -> np.ndarray:
        """The chunks of recordings of so many seconds, cut to `seconds` and to a row."""
        # What the product rounds up is less than a part of a sample can be.
        samples = np.ceil(measured["seconds"] * self.config.sample_rate * (1 - 1e-13))
        return np.clip(np.ceil(np.minimum(samples, self._length) / self._chunk), 1, budget).astype(np.int64)

    def elements(self, raw: Waveform, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Makes (chunks [n, chunk], (index, samples) [n, 2]) of a recording; raises ValueError as `process` does."""
        samples = self._samples(raw, min(self._length, most * self._chunk))
        count = -(-len(samples) // self._chunk)
        values = np.zeros(count * self._chunk, np.float32)
        values[: len(samples)] = samples
        places = np.stack([np.arange(count), np.full(count, len(samples))], axis=1).astype(np.float32)
        return values.reshape(count, self._chunk), places

    def _samples(self, raw: Waveform, most: int) -> np.ndarray:
        """The samples of a recording at the rate and loudness of the config, `most` at most."""
        samples, rate = raw
        samples = mono(np.asarray(samples))
        if self.config.trim is not None:
            samples = _trimmed(samples, self.config.trim)
        # A long recording is cut before it is resampled, with a margin wider than the filter reaches.
        samples = samples[: math.ceil((most / self.config.sample_rate + 1) * rate)]
        return self._normalised(resample(samples, rate, self.config.sample_rate)[:most])

    def read(self, argument: str, where: str) -> Waveform:
        """Reads the WAV file at the path `argument`: 8, 16, 24 or 32 bits, or floating; any rate and channels.

        Returns:
          (samples [n] or [n, channels], rate in Hz).

        Raises:
          UserError: if the file is missing, cannot be read, is cut short, is not a WAV file, or holds no sound.
        """
        # scipy.io takes long to import, and only the command line reads files.
        import scipy.io.wavfile

        remedy = "give the path of a whole WAV file (PCM or floating point)"
        try:
            with warnings.catch_warnings():
                # A file that ends early is only a warning to SciPy; unknown extra chunks are harmless.
                warnings.filterwarnings("ignore", message="Chunk")
                warnings.filterwarnings("error", message="Reached EOF")
                rate, samples = scipy.io.wavfile.read(argument)
        except FileNotFoundError:
            raise UserError(where, f"there is no file {argument!r}", "give the path of a WAV file") from None
        # A damaged header raises whatever SciPy trips over, struct.error and UnboundLocalError included.
        except Exception as error:
            raise UserError(where, f"{argument!r} cannot be read as WAV: {error}", remedy) from None
        if samples.dtype == np.uint8:
            samples = (samples.astype(np.float32) - 128) / 128
        elif samples.dtype.kind == "i" and samples.dtype != np.int16:
            # SciPy gives 24 bits in the upper bytes of 32.
            samples = (samples / 2.0 ** (8 * samples.dtype.itemsize - 1)).astype(np.float32)
        try:
            mono(samples)
        except ValueError as error:
            raise UserError(where, f"{argument!r}: {error}", remedy) from None
        if rate < 1:
            raise UserError(where, f"{argument!r} has a sample rate of {rate} Hz", remedy)
        return samples, int(rate)

    def files(self) -> list[pathlib.Path]:
        """None."""
        return []

    def _normalised(self, samples: np.ndarray) -> np.ndarray:
        if self.config.normalise == "none":
            return samples
        peak = np.abs(samples).max()
        if peak < 1e-8:
            return samples
        if self.config.normalise == "peak":
            return samples / peak
        return samples * np.float32(0.1 / np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def mono(samples: np.ndarray) -> np.ndarray:
    """Makes [n] or [n, channels], int16 or floating, float32 [n]: the mean of the channels."""
    if samples.ndim not in (1, 2) or not (samples.dtype == np.int16 or samples.dtype.kind == "f"):
        raise ValueError(f"audio is int16 or float [n] or [n, channels], not {samples.dtype} {list(samples.shape)}")
    if samples.size == 0:
        raise ValueError("the audio holds no samples")
    values = samples.astype(np.float32) / (32768 if samples.dtype == np.int16 else 1)
    if values.ndim == 2:
        values = values.mean(axis=1)
    if samples.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("the audio holds values that are not finite")
    return values


def _trimmed(samples: np.ndarray, decibels: float) -> np.ndarray:
    """Cuts both ends where the amplitude stays `decibels` below the peak."""
    level = np.abs(samples)
    loud = level > level.max() * 10 ** (-decibels / 20)
    return samples[loud.argmax() : len(loud) - loud[::-1].argmax()] if loud.any() else samples
