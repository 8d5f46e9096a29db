"""Audio modality: resamples a recording to float32 samples of a fixed rate and length, with a mask."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np

from mmjax.config import AtLeast, Count
from mmjax.errors import UserError
from mmjax.modalities.filters import resample
from mmjax.modalities.raw_files import read_bytes
from mmjax.modalities.recordings import Waveform, check_rate, mono, read_recording
from mmjax.tokens import InputSpec


class Audio:
    """Converts recordings of any rate, length and channel count to mono waveforms of a fixed shape.

    Raw data is (samples, rate in Hz). Samples are [n] or [n, channels], int16 or floating point with full scale 1.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `Audio`.

        Attributes:
          sample_rate: sample rate in Hz; recordings at other rates are resampled.
          seconds: length in seconds. Longer recordings are truncated at the end, shorter ones are padded and masked.
          normalise: loudness normalisation: "rms" scales to a root mean square of 0.1, "peak" to a peak of 1, "none"
            disables it. Silent recordings are unchanged.
          trim: silence threshold in decibels below the peak; leading and trailing silence is removed. None disables
            trimming. Use it if recordings start with a pause, but the training clips start with the word.
          chunk: samples per element when recordings are packed; set it to the encoder's samples per token. Packed
            recordings keep their length, up to `seconds`.
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
        """[samples] float32, with a mask per sample."""
        return InputSpec((self._length,), "float32", mask_rank=1, details={"sample_rate": self.config.sample_rate})

    def process(self, raw: Waveform) -> tuple[np.ndarray, np.ndarray]:
        """Converts (samples [n] or [n, channels], rate in Hz) to (values [samples] float32, mask [samples] bool).

        Raises:
          ValueError: if the recording is empty or not finite, or has an unsupported shape or dtype.
        """
        samples = self._preprocess(raw, self._length)
        values, mask = np.zeros(self._length, np.float32), np.zeros(self._length, bool)
        values[: len(samples)], mask[: len(samples)] = samples, True
        return values, mask

    def packed_spec(self, budget: int) -> InputSpec:
        """[budget, chunk] float32, with positions (chunk index, total samples of the recording).

        Raises:
          ValueError: if `chunk` is not set.
        """
        if not self._chunk:
            raise ValueError("packing audio needs chunk, which is not set; set it to the encoder's samples per token")
        details = {"sample_rate": self.config.sample_rate, "chunk": self._chunk, "samples": self._length}
        return InputSpec((budget, self._chunk), "float32", 1, details, axes=2)

    def lengths(self, measured: Mapping[str, np.ndarray], budget: int) -> np.ndarray:
        """Computes chunks per recording, int64 [records], limited by `seconds` and `budget`."""
        # Scale down slightly, so that rounding errors of the product do not add a sample.
        samples = np.ceil(measured["seconds"] * self.config.sample_rate * (1 - 1e-13))
        return np.clip(np.ceil(np.minimum(samples, self._length) / self._chunk), 1, budget).astype(np.int64)

    def process_packed(self, raw: Waveform, max_elements: int) -> tuple[np.ndarray, np.ndarray]:
        """Converts a recording to (chunks [n, chunk] float32, positions (chunk index, total samples) [n, 2] float32).

        Raises:
          ValueError: as in `process`.
        """
        samples = self._preprocess(raw, min(self._length, max_elements * self._chunk))
        count = -(-len(samples) // self._chunk)
        values = np.zeros(count * self._chunk, np.float32)
        values[: len(samples)] = samples
        positions = np.stack([np.arange(count), np.full(count, len(samples))], axis=1).astype(np.float32)
        return values.reshape(count, self._chunk), positions

    def _preprocess(self, raw: Waveform, max_samples: int) -> np.ndarray:
        """Trims, resamples, truncates and normalises a recording to float32 [n], n <= max_samples."""
        samples, rate = raw
        samples = mono(np.asarray(samples))
        check_rate(rate)
        if self.config.trim is not None:
            samples = _trim_silence(samples, self.config.trim)
        # Truncate before resampling, with a margin of one second, which exceeds the filter length.
        samples = samples[: math.ceil((max_samples / self.config.sample_rate + 1) * rate)]
        return self._normalise(resample(samples, rate, self.config.sample_rate)[:max_samples])

    def read(self, argument: str, where: str) -> Waveform:
        """Reads a WAV, FLAC, OGG or MP3 file of any rate and channel count; see `read_recording`.

        Args:
          argument: path of the file.
          where: name of the flag, for messages.

        Returns:
          (samples [n] or [n, channels], rate in Hz).

        Raises:
          UserError: if the file is missing, unreadable, truncated or not a recording, or has no samples.
        """
        data = read_bytes(argument, where, "give the path of a WAV file")
        try:
            return read_recording(data, argument)
        except ValueError as error:
            remedy = "give the path of a complete WAV file (PCM or floating point), or of a FLAC, OGG or MP3 file"
            raise UserError(where, f"{argument!r} cannot be read as WAV or other audio: {error}", remedy) from None

    def _normalise(self, samples: np.ndarray) -> np.ndarray:
        if self.config.normalise == "none":
            return samples
        peak = np.abs(samples).max()
        if peak < 1e-8:
            return samples
        if self.config.normalise == "peak":
            return samples / peak
        return samples * np.float32(0.1 / np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def _trim_silence(samples: np.ndarray, decibels: float) -> np.ndarray:
    """Removes leading and trailing samples that are at least `decibels` below the peak."""
    level = np.abs(samples)
    loud = level > level.max() * 10 ** (-decibels / 20)
    return samples[loud.argmax() : len(loud) - loud[::-1].argmax()] if loud.any() else samples
