"""Recordings as through another microphone or in another room: some frequencies louder, others softer."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from mmjax.config import AtLeast
from mmjax.modalities.audio import Waveform, mono


class Equalise:
    """Draws a gain in decibels at a few frequencies, evenly spaced as the ear hears them, and interpolates between."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """How much, and how finely.

        Attributes:
          deviation: of the gains, which are normally distributed, in decibels.
          points: frequencies with a gain of their own, 0 and half the sample rate among them.
        """

        deviation: Annotated[float, AtLeast(0.0)] = 6.0
        points: Annotated[int, AtLeast(2)] = 6

    def __init__(self, config: Config):
        self.config = config

    def __call__(self, raw: Waveform, draws: np.random.Generator) -> Waveform:
        """(samples [n] or [n, channels], rate) to float32 [n], the mean of the channels, and the same rate."""
        samples, rate = mono(raw[0]), raw[1]
        gains = draws.normal(0.0, self.config.deviation, self.config.points)
        # The mel scale (O'Shaughnessy, 1987), up to a factor.
        highest = np.log1p(rate / 2 / 700.0)
        places = np.log1p(np.fft.rfftfreq(len(samples), 1 / rate) / 700.0) / highest * (self.config.points - 1)
        decibels = np.interp(places, np.arange(self.config.points), gains)
        spectrum = np.fft.rfft(samples) * 10 ** (decibels / 20)
        return np.fft.irfft(spectrum, len(samples)).astype(np.float32), rate
