"""Random equalisation of recordings, which simulates other microphones and rooms."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from mmjax.config import AtLeast, Formerly
from mmjax.modalities.augmentation.base import Augmentation
from mmjax.modalities.recordings import Waveform, mono


class Equalise(Augmentation):
    """Applies a random frequency response: gains at a few mel-spaced frequencies, linearly interpolated in decibels."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `Equalise`.

        Attributes:
          std: standard deviation of the normally distributed gains, in decibels.
          points: number of frequencies with a random gain, including 0 and half the sample rate.
        """

        std: Annotated[float, AtLeast(0.0), Formerly("deviation")] = 6.0
        points: Annotated[int, AtLeast(2)] = 6

    def __call__(self, raw: Waveform, rng: np.random.Generator) -> Waveform:
        """Filters (samples [n] or [n, channels], rate) to (mono float32 [n], rate)."""
        samples, rate = mono(raw[0]), raw[1]
        gains = rng.normal(0.0, self.config.std, self.config.points)
        # Mel scale (O'Shaughnessy, 1987), up to a factor.
        highest = np.log1p(rate / 2 / 700.0)
        positions = np.log1p(np.fft.rfftfreq(len(samples), 1 / rate) / 700.0) / highest * (self.config.points - 1)
        decibels = np.interp(positions, np.arange(self.config.points), gains)
        spectrum = np.fft.rfft(samples) * 10 ** (decibels / 20)
        return np.fft.irfft(spectrum, len(samples)).astype(np.float32), rate
