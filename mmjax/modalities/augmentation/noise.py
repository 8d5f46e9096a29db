"""White noise for recordings."""

from __future__ import annotations

import dataclasses

import numpy as np

from mmjax.modalities.augmentation.base import Augmentation
from mmjax.modalities.recordings import Waveform, mono


class Noise(Augmentation):
    """Adds Gaussian noise at a random signal-to-noise ratio, uniform in decibels.

    Signal power is the variance of the samples, which excludes a constant offset of the recorder.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `Noise`.

        Attributes:
          low: minimum signal-to-noise ratio (power about the mean) in decibels.
          high: maximum signal-to-noise ratio (power about the mean) in decibels.
        """

        low: float = 10.0
        high: float = 40.0

        def __post_init__(self):
            if self.low > self.high:
                raise ValueError(f"low {self.low} exceeds high {self.high}; swap them")

    def __call__(self, raw: Waveform, rng: np.random.Generator) -> Waveform:
        """Converts (samples [n] or [n, channels], rate) to noisy (mono float32 [n], rate). Silence is unchanged."""
        samples, rate = mono(raw[0]), raw[1]
        ratio = rng.uniform(self.config.low, self.config.high)
        std = np.std(samples, dtype=np.float64) * 10 ** (-ratio / 20)
        noise = rng.standard_normal(samples.shape, np.float32)
        return samples + np.float32(std) * noise, rate
