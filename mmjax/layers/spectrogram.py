"""Log-mel spectrograms in JAX: computed inside the step, on the accelerator, from the waveform.

Recordings that share a row are cut into chunks of as many samples as a token stands for, and each chunk gets the frames
around it: those that it would have if its recording were alone.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mmjax.config import AtLeast, Count, NonNegative
from mmjax.layers.randomness import Randomness
from mmjax.tokens import Input, InputSpec, of_slots

FLOOR = 1e-5
"""Added to the energies before the logarithm; a silent frame gives log(FLOOR)."""

SILENCE = (math.log(FLOOR) + 5.0) / 4.0
"""What `log_mel` makes of a silent frame."""


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
    """Makes the waveforms of an input log-mel frames; has no parameters.

    Attributes:
      frames: of the longest recording.

    Raises:
      ValueError: "problem; remedy", where frames and samples do not fit.
    """

    def __init__(self, config: SpectrogramConfig, spec: InputSpec):
        self.config, self.sample_rate = config, spec.details["sample_rate"]
        self.window = self.sample_rate * config.window_ms // 1000
        self.hop = self.sample_rate * config.hop_ms // 1000
        if self.hop < 1:
            raise ValueError(f"hop_ms {config.hop_ms} is no sample at {self.sample_rate} Hz; give more of either")
        samples = spec.details["samples"] if spec.axes else spec.shape[0]
        if samples < self.window:
            raise ValueError(f"{samples} samples are less than a window of {self.window}; use longer audio")
        self.frames = 1 + (samples - self.window) // self.hop

    def __call__(
        self, input: Input, rng: Randomness | None
    ) -> tuple[Float[Array, "batch frames bins"], Bool[Array, "batch frames"]]:
        """The frames of waveforms [B, samples], float32, and which of them begin in the recording.

        `rng` is None outside training.
        """
        config = self.config
        frames = self._log_mel(input.values)
        mask = input.mask[:, jnp.arange(frames.shape[1]) * self.hop]
        if config.normalise == "recording":
            real = mask[:, :, None].astype(jnp.float32)
            mean = (frames * real).sum(axis=1, keepdims=True) / jnp.maximum(real.sum(axis=1, keepdims=True), 1.0)
            # What follows the recording is the mean too: a step down to silence would be seen by the convolutions.
            frames = (frames - mean) * real
        return self._hide(frames, jnp.arange(frames.shape[1])[None], rng, lambda drawn: drawn), mask

    def around(
        self, input: Input, offsets: range, rng: Randomness | None
    ) -> tuple[Float[Array, "rows chunks offsets bins"], Int[Array, "rows chunks"]]:
        """Frames of packed chunks [R, N, chunk] at these offsets from the first of each chunk, and the first's number.

        They are those of the chunk's own recording: silence after its end, and 0 where it would have no frame at all.
        """
        per = input.values.shape[2] // self.hop
        index, samples = input.positions[..., 0], input.positions[..., 1:]
        first = index.astype(jnp.int32) * per
        number = first[..., None] + jnp.array(offsets)
        frames = self._frames_of_chunks(input)
        pieces = []
        for shift in range(offsets.start // per, (offsets.stop - 1) // per + 1):
            theirs = slice(max(offsets.start - shift * per, 0), min(offsets.stop - shift * per, per))
            own = _same(input, shift)[..., None, None]
            pieces.append(jnp.where(own, _shifted(frames[:, :, theirs], shift), SILENCE))
        around = jnp.concatenate(pieces, axis=2)
        if self.config.normalise == "recording":
            own_number = first[..., None] + jnp.arange(per)
            real = (own_number * self.hop < samples) & (own_number < self.frames)
            mean = _mean_of_examples(input, frames, real)
            around = (around - mean[:, :, None]) * (number * self.hop < samples)[..., None]
        around = jnp.where(((number >= 0) & (number < self.frames))[..., None], around, 0.0)

        def of_chunks(drawn):
            """[R, N, 1] of the [B, 1] that are drawn for the examples."""
            return jnp.take_along_axis(drawn.reshape(-1, input.slots), input.segments, axis=1)[..., None]

        return self._hide(around, number, rng, of_chunks), first

    def _frames_of_chunks(self, input: Input) -> Float[Array, "rows chunks frames bins"]:
        """The frames that begin in each chunk. Where they reach beyond its recording there is silence."""
        rows, count, chunk = input.values.shape
        beyond, pieces = self.window - self.hop, [input.values]
        for shift in range(1, -(-beyond // chunk) + 1):
            here = _shifted(input.values[..., : beyond - (shift - 1) * chunk], shift)
            pieces.append(jnp.where(_same(input, shift)[..., None], here, 0.0))
        # Each chunk and what follows it is a short waveform.
        waveform = jnp.concatenate(pieces, axis=2)[..., : chunk + max(beyond, 0)].reshape(rows * count, -1)
        frames = self._log_mel(waveform)
        return frames.reshape(rows, count, *frames.shape[1:])

    def _log_mel(self, waveform: Float[Array, "batch samples"]) -> Float[Array, "batch frames bins"]:
        bins = self.config.bins
        return log_mel(waveform, sample_rate=self.sample_rate, bins=bins, window=self.window, hop=self.hop)

    def _hide(self, frames: Array, number: Array, rng: Randomness | None, spread: Callable) -> Array:
        """SpecAugment of frames [..., frames, bins] with these numbers [..., frames]; 0 is the mean of speech.

        Args:
          spread: makes what is drawn for each example, [B], so that it broadcasts with `number`.
        """
        config = self.config
        if rng is None:
            return frames

        def hidden(name: str, place: Array, places: int, longest: float) -> Array:
            """One stretch of places an example, its length uniform up to `longest`, anywhere among them."""
            draws = rng.fold_in(name).bits((2,)).astype(jnp.float32) / 2.0**32
            length = draws[:, :1] * min(longest, places)
            start = draws[:, 1:] * (places - length)
            return (place >= spread(start)) & (place < spread(start + length))

        for turn in range(2):
            if config.frequency_mask:
                bins = jnp.arange(config.bins)[None]
                band = hidden(f"frequency {turn}", bins, config.bins, config.frequency_mask)
                frames = jnp.where(band[..., None, :], 0.0, frames)
            if config.time_mask_ms:
                stretch = hidden(f"time {turn}", number, self.frames, config.time_mask_ms / config.hop_ms)
                frames = jnp.where(stretch[..., None], 0.0, frames)
        return frames


def _shifted(x: Array, by: int) -> Array:
    """[R, N, ...] with element n + `by` in place n, and 0 where there is none."""
    count = x.shape[1]
    pad = ((0, 0), (max(-by, 0), max(by, 0)), *((0, 0),) * (x.ndim - 2))
    return jax.lax.slice_in_dim(jnp.pad(x, pad), max(by, 0), max(by, 0) + count, axis=1)


def _same(input: Input, by: int) -> Bool[Array, "rows chunks"]:
    """Whether element n + `by` is of the same example as element n."""
    return input.mask & _shifted(input.mask, by) & (input.segments == _shifted(input.segments, by))


def _mean_of_examples(input: Input, frames: Array, real: Array) -> Float[Array, "rows chunks bins"]:
    """For each chunk, the mean of the frames [R, N, frames, bins] of its example that are `real`."""
    members = of_slots(input.mask, input.segments, input.slots).astype(jnp.float32)
    weights = real.astype(jnp.float32)
    # Products with 0 and 1 are exact, unless the accelerator rounds what it multiplies.
    exactly = functools.partial(jnp.einsum, precision="highest")
    total = exactly("ren,rnfb,rnf->reb", members, frames, weights)
    count = exactly("ren,rnf->re", members, weights)
    return exactly("ren,reb->rnb", members, total / jnp.maximum(count, 1.0)[..., None])
