"""Log-mel spectrograms in JAX: computed inside the step, on the accelerator, from the waveform."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mmjax.config import AtLeast, Count, NonNegative
from mmjax.layers.randomness import Randomness
from mmjax.tokens import Input, InputSpec

FLOOR = 1e-5
"""Added to the energies before the logarithm; a silent frame gives log(FLOOR)."""


def mel_filters(bins: int, fft: int, sample_rate: int, low: float = 20.0) -> np.ndarray:
    """Triangular filters [fft // 2 + 1, bins], evenly spaced on O'Shaughnessy's mel scale (1987), with peaks of 1."""

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
    """Log of mel energies, float32, scaled to about zero mean and unit variance for speech.

    The Fourier transform is a matrix product with a windowed basis: exact, fast on matrix units, and free of gathers.

    Args:
      waveform: samples in [-1, 1].
      window, hop: samples of one frame (Hann window) and from one frame to the next.
    """
    x = waveform.astype(jnp.float32)
    frames = 1 + (x.shape[1] - window) // hop
    fft = 1 << (window - 1).bit_length()
    time = np.arange(window)
    angle = 2 * np.pi * np.outer(time, np.arange(fft // 2 + 1)) / fft
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * time / window))[:, None]
    basis = np.concatenate([hann * np.cos(angle), hann * np.sin(angle)], axis=1).astype(np.float32)
    # Framing as a convolution with the basis: no copy of the overlapping frames.
    spectrum = jax.lax.conv_general_dilated(
        x[:, :, None], jnp.asarray(basis[:, None, :]), (hop,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
    )[:, :frames]
    real, imaginary = jnp.split(spectrum, 2, axis=-1)
    power = (real * real + imaginary * imaginary) / window
    energies = power @ mel_filters(bins, fft, sample_rate)
    return (jnp.log(energies + FLOOR) + 5.0) / 4.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpectrogramConfig:
    """The spectrogram that an encoder of audio begins with.

    Attributes:
      bins: mel bins.
      window_ms, hop_ms: length of a frame and from one to the next, in milliseconds.
      normalise: "none", or "recording" to subtract from each bin its mean over the frames of the recording, which takes
        away what microphone and room do to the sound (cepstral mean normalisation; Atal, 1974).
      frequency_mask: in training, two bands of up to so many bins are hidden (SpecAugment; Park et al., 2019).
      time_mask_ms: in training, two stretches of up to so many milliseconds are hidden.
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
    """Makes the waveforms [B, samples] of an input log-mel frames; has no parameters.

    Raises:
      ValueError: "problem; remedy", where frames and samples do not fit.
    """

    def __init__(self, config: SpectrogramConfig, spec: InputSpec):
        self.config, self.sample_rate = config, spec.details["sample_rate"]
        self.window = self.sample_rate * config.window_ms // 1000
        self.hop = self.sample_rate * config.hop_ms // 1000
        if self.hop < 1:
            raise ValueError(f"hop_ms {config.hop_ms} is no sample at {self.sample_rate} Hz; give more of either")
        if spec.shape[0] < self.window:
            raise ValueError(f"{spec.shape[0]} samples are less than a window of {self.window}; use longer audio")

    def __call__(
        self, input: Input, random: Randomness | None
    ) -> tuple[Float[Array, "batch frames bins"], Bool[Array, "batch frames"]]:
        """Returns the frames, float32, and which of them begin in the recording; `random` is None outside training."""
        config = self.config
        frames = log_mel(input.values, sample_rate=self.sample_rate, bins=config.bins, window=self.window, hop=self.hop)
        mask = input.mask[:, jnp.arange(frames.shape[1]) * self.hop]
        if config.normalise == "recording":
            real = mask[:, :, None].astype(jnp.float32)
            mean = (frames * real).sum(axis=1, keepdims=True) / jnp.maximum(real.sum(axis=1, keepdims=True), 1.0)
            # What follows the recording is the mean too: a step down to silence would be seen by the convolutions.
            frames = (frames - mean) * real
        if random is not None:
            for number in range(2):
                if config.frequency_mask:
                    hidden = _span(random.fold(f"frequency {number}"), config.bins, config.frequency_mask)
                    frames = jnp.where(hidden[:, None, :], 0.0, frames)
                if config.time_mask_ms:
                    longest = config.time_mask_ms / config.hop_ms
                    hidden = _span(random.fold(f"time {number}"), frames.shape[1], longest)
                    frames = jnp.where(hidden[:, :, None], 0.0, frames)
        return frames, mask


def _span(random: Randomness, places: int, longest: float) -> Bool[Array, "batch places"]:
    """One stretch of places an example, its length uniform up to `longest`, anywhere among them."""
    draws = random.bits((2,)).astype(jnp.float32) / 2.0**32
    length = draws[:, :1] * min(longest, places)
    start = draws[:, 1:] * (places - length)
    place = jnp.arange(places)[None]
    return (place >= start) & (place < start + length)
