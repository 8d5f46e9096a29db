"""Log-mel spectrograms in JAX, computed from the waveform inside the training step.

Packed recordings are cut into chunks, each with as many samples as one token covers. `Spectrogram.packed_frames`
returns the frames around each chunk, equal to those of the unpacked recording. Example of a row with recordings `a`
(500 samples) and `b` (300 samples), for chunks of 320 samples and a hop of 160 (two frames per chunk):

    values       a[0:320]  a[320:500]+zeros  b[0:300]+zeros  zeros
    positions    (0, 500)  (1, 500)          (0, 300)        (0, 0)     chunk index, samples of the recording
    segments     0         0                 1               0
    mask         1         1                 1               0
    frames       a0 a1     a2 a3             b0 b1           - -
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mmjax.config import AtLeast, Count, NonNegative
from mmjax.layers.randomness import Randomness
from mmjax.tokens import Input, InputSpec, slot_masks

ENERGY_FLOOR = 1e-5
"""Added to the mel energies before the logarithm."""


def mel_filters(bins: int, fft: int, sample_rate: int, low: float = 20.0) -> Float[np.ndarray, "frequencies bins"]:
    """Triangular mel filters [fft // 2 + 1, bins] with peak 1, evenly spaced on the mel scale (O'Shaughnessy, 1987).

    Args:
      bins: number of filters.
      fft: length of the Fourier transform in samples.
      sample_rate: in Hz.
      low: lower edge of the first filter in Hz; the upper edge of the last is `sample_rate` / 2.
    """

    def to_mel(hertz):
        return 2595.0 * np.log10(1.0 + hertz / 700.0)

    edges = 700.0 * (10.0 ** (np.linspace(to_mel(low), to_mel(sample_rate / 2), bins + 2) / 2595.0) - 1.0)
    frequencies = np.linspace(0.0, sample_rate / 2, fft // 2 + 1)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def log_mel(
    waveform: Float[Array, "batch samples"], *, sample_rate: int, bins: int, window: int, hop: int
) -> Float[Array, "batch frames bins"]:
    """Log-mel spectrogram, float32, scaled to about zero mean and unit variance for speech.

    The Fourier transform is a matmul with a windowed DFT basis: exact, fast on matrix units, and free of gathers.

    Args:
      waveform: samples in [-1, 1].
      sample_rate: in Hz.
      bins: number of mel bins.
      window: length of the Hann window in samples.
      hop: samples between the starts of adjacent frames.
    """
    x = waveform.astype(jnp.float32)
    frames = 1 + (x.shape[1] - window) // hop
    fft = 1 << (window - 1).bit_length()
    time = np.arange(window)
    angle = 2 * np.pi * np.outer(time, np.arange(fft // 2 + 1)) / fft
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * time / window))[:, None]
    basis = np.concatenate([hann * np.cos(angle), hann * np.sin(angle)], axis=1).astype(np.float32)
    # Framing is a strided convolution with the basis, which avoids a copy of the overlapping frames.
    spectrum = jax.lax.conv_general_dilated(
        x[:, :, None], jnp.asarray(basis[:, None, :]), (hop,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
    )[:, :frames]
    real, imaginary = jnp.split(spectrum, 2, axis=-1)
    power = (real * real + imaginary * imaginary) / window
    energies = power @ mel_filters(bins, fft, sample_rate)
    return (jnp.log(energies + ENERGY_FLOOR) + 5.0) / 4.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpectrogramConfig:
    """Options of the log-mel spectrogram in audio encoders.

    Attributes:
      bins: number of mel bins.
      window_ms: frame length in milliseconds.
      hop_ms: time between the starts of adjacent frames in milliseconds.
      normalise: "none", or "recording" to subtract the mean of each bin over the frames of the recording, which removes
        the frequency response of microphone and room (cepstral mean normalisation; Atal, 1974).
      frequency_mask: maximum width in bins of each of two masked frequency bands, in training only; 0 disables it
        (SpecAugment; Park et al., 2019).
      time_mask_ms: maximum length in milliseconds of each of two masked time spans, in training only; 0 disables it.
    """

    bins: Count = 80
    window_ms: Count = 25
    hop_ms: Count = 10
    normalise: Literal["none", "recording"] = "none"
    frequency_mask: NonNegative = 0
    time_mask_ms: Annotated[float, AtLeast(0.0)] = 0.0

    def __post_init__(self):
        if self.frequency_mask > self.bins:
            raise ValueError(f"frequency_mask {self.frequency_mask} exceeds the {self.bins} bins; make it smaller")


class Spectrogram:
    """Computes log-mel frames from waveforms, with normalisation and SpecAugment. Has no parameters.

    Attributes:
      window: frame length in samples.
      hop: samples between the starts of adjacent frames.
      frames: number of frames of the longest recording, one for each hop that starts in it. The last windows extend
        past its end and read zeros, so a recording has the same frames in any longer array.

    Raises:
      ValueError: if the hop is below one sample or the recordings are shorter than a window.
    """

    def __init__(self, config: SpectrogramConfig, spec: InputSpec):
        self.config, self.sample_rate = config, spec.details["sample_rate"]
        self.window = self.sample_rate * config.window_ms // 1000
        self.hop = self.sample_rate * config.hop_ms // 1000
        if self.hop < 1:
            raise ValueError(f"hop_ms {config.hop_ms} is less than a sample at {self.sample_rate} Hz; increase either")
        samples = spec.details["samples"] if spec.axes else spec.shape[0]
        if samples < self.window:
            raise ValueError(f"{samples} samples are shorter than a window of {self.window}; use longer audio")
        self.frames = -(-samples // self.hop)

    def __call__(
        self, inputs: Input, rng: Randomness | None
    ) -> tuple[Float[Array, "batch frames bins"], Bool[Array, "batch frames"]]:
        """Returns float32 frames of unpacked waveforms [B, samples] and the mask of frames that start in the recording.

        Frames after the recording are 0, like the padding of a convolution. `rng` is None outside training.
        """
        overlap = (self.frames - 1) * self.hop + self.window - inputs.values.shape[1]
        frames = self._log_mel(jnp.pad(inputs.values, ((0, 0), (0, max(overlap, 0)))))
        mask = inputs.mask[:, :: self.hop]
        valid = mask[:, :, None].astype(jnp.float32)
        if self.config.normalise == "recording":
            frames -= (frames * valid).sum(axis=1, keepdims=True) / jnp.maximum(valid.sum(axis=1, keepdims=True), 1.0)
        frames = jnp.where(mask[:, :, None], frames, 0.0)
        return self._spec_augment(frames, jnp.arange(frames.shape[1])[None], rng, lambda draws: draws), mask

    def packed_frames(
        self, inputs: Input, offsets: range, rng: Randomness | None
    ) -> tuple[Float[Array, "rows chunks offsets bins"], Int[Array, "rows chunks"]]:
        """Returns the frames at `offsets` from the first frame of each packed chunk, and the first frame's index.

        Frames have the values of the unpacked recording, and are 0 before its start and after its end.

        Args:
          inputs: chunks [R, N, chunk] with positions (chunk index, samples of the recording).
          offsets: frame offsets relative to the first frame of a chunk; may be negative or reach into later chunks.
          rng: None outside training.
        """
        frames_per_chunk = inputs.values.shape[2] // self.hop
        chunk_index, samples = inputs.positions[..., 0], inputs.positions[..., 1:]
        first = chunk_index.astype(jnp.int32) * frames_per_chunk
        index = first[..., None] + jnp.array(offsets)
        chunk_frames = self._frames_of_chunks(inputs)
        parts = []
        for shift in range(offsets.start // frames_per_chunk, (offsets.stop - 1) // frames_per_chunk + 1):
            start, stop = (offset - shift * frames_per_chunk for offset in (offsets.start, offsets.stop))
            part = chunk_frames[:, :, max(start, 0) : min(stop, frames_per_chunk)]
            # Frames shifted in from other recordings have an `index` outside this recording, and are set to 0 below.
            parts.append(_shifted(part, shift))
        frames = jnp.concatenate(parts, axis=2)
        if self.config.normalise == "recording":
            own_index = first[..., None] + jnp.arange(frames_per_chunk)
            mean = _example_mean(inputs, chunk_frames, own_index * self.hop < samples)
            frames = frames - mean[:, :, None]
        frames = jnp.where(((index >= 0) & (index * self.hop < samples))[..., None], frames, 0.0)

        def per_chunk(draws):
            """Expands draws per example [B, 1] to chunks [R, N, 1]."""
            return jnp.take_along_axis(draws.reshape(-1, inputs.slots), inputs.segments, axis=1)[..., None]

        return self._spec_augment(frames, index, rng, per_chunk), first

    def _frames_of_chunks(self, inputs: Input) -> Float[Array, "rows chunks frames bins"]:
        """Computes the frames that start in each chunk; windows that extend past the recording read zeros."""
        rows, count, chunk = inputs.values.shape
        overlap, parts = self.window - self.hop, [inputs.values]
        for shift in range(1, -(-overlap // chunk) + 1):
            following = _shifted(inputs.values[..., : overlap - (shift - 1) * chunk], shift)
            parts.append(jnp.where(_same_example(inputs, shift)[..., None], following, 0.0))
        # Treat each chunk, followed by the next `overlap` samples of its recording, as a short waveform.
        waveform = jnp.concatenate(parts, axis=2)[..., : chunk + max(overlap, 0)].reshape(rows * count, -1)
        frames = self._log_mel(waveform)
        return frames.reshape(rows, count, *frames.shape[1:])

    def _log_mel(self, waveform: Float[Array, "batch samples"]) -> Float[Array, "batch frames bins"]:
        bins = self.config.bins
        return log_mel(waveform, sample_rate=self.sample_rate, bins=bins, window=self.window, hop=self.hop)

    def _spec_augment(self, frames: Array, index: Array, rng: Randomness | None, expand: Callable) -> Array:
        """SpecAugment (Park et al., 2019): sets masked bands and time spans to 0, the mean of speech.

        Args:
          frames: log-mel frames [..., frames, bins].
          index: index of each frame in its recording, [..., frames] or [1, frames].
          rng: None outside training; `frames` are then returned unchanged.
          expand: reshapes draws per example [B, 1] to broadcast with `index`.
        """
        config = self.config
        if rng is None:
            return frames

        def span_mask(name: str, index: Array, size: int, max_length: float) -> Array:
            """Masks one random span per example: length uniform in [0, max_length], start uniform where it fits."""
            draws = rng.fold_in(name).bits((2,)).astype(jnp.float32) / 2.0**32
            length = draws[:, :1] * min(max_length, size)
            start = draws[:, 1:] * (size - length)
            return (index >= expand(start)) & (index < expand(start + length))

        for repeat in range(2):
            if config.frequency_mask:
                bins = jnp.arange(config.bins)[None]
                band = span_mask(f"frequency {repeat}", bins, config.bins, config.frequency_mask)
                frames = jnp.where(band[..., None, :], 0.0, frames)
            if config.time_mask_ms:
                span = span_mask(f"time {repeat}", index, self.frames, config.time_mask_ms / config.hop_ms)
                frames = jnp.where(span[..., None], 0.0, frames)
        return frames


def _shifted(x: Array, shift: int) -> Array:
    """Returns y [R, N, ...] with y[:, n] = x[:, n + shift], and 0 where n + shift is out of range."""
    count = x.shape[1]
    pad = ((0, 0), (max(-shift, 0), max(shift, 0)), *((0, 0),) * (x.ndim - 2))
    return jax.lax.slice_in_dim(jnp.pad(x, pad), max(shift, 0), max(shift, 0) + count, axis=1)


def _same_example(inputs: Input, shift: int) -> Bool[Array, "rows chunks"]:
    """Mask of chunks n for which chunk n + shift belongs to the same example."""
    return inputs.mask & _shifted(inputs.mask, shift) & (inputs.segments == _shifted(inputs.segments, shift))


def _example_mean(
    inputs: Input, frames: Float[Array, "rows chunks frames bins"], valid: Bool[Array, "rows chunks frames"]
) -> Float[Array, "rows chunks bins"]:
    """Mean over the valid frames of each chunk's example."""
    members = slot_masks(inputs.mask, inputs.segments, inputs.slots).astype(jnp.float32)
    weights = valid.astype(jnp.float32)
    # Precision "highest", since accelerators may round the operands of a float32 matmul to bfloat16.
    einsum = functools.partial(jnp.einsum, precision="highest")
    total = einsum("ren,rnfb,rnf->reb", members, frames, weights)
    count = einsum("ren,rnf->re", members, weights)
    return einsum("ren,reb->rnb", members, total / jnp.maximum(count, 1.0)[..., None])
