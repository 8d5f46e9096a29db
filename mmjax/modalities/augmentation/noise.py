"""White noise under recordings."""

from __future__ import annotations

import dataclasses

import numpy as np

from mmjax.modalities.audio import Waveform, mono


class Noise:
    """Adds Gaussian noise at a signal-to-noise ratio drawn uniformly in decibels."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Bounds.

        Attributes:
          low, high: of the ratio of the mean powers, in decibels.
        """

        low: float = 10.0
        high: float = 40.0

        def __post_init__(self):
            if self.low > self.high:
                raise ValueError(f"low {self.low} exceeds high {self.high}; swap them")

    def __init__(self, config: Config):
        self.config = config

    def __call__(self, raw: Waveform, draws: np.random.Generator) -> Waveform:
        """(samples [n] or [n, channels], rate) to float32 [n], the mean of the channels; digital silence stays."""
        samples, rate = mono(raw[0]), raw[1]
        ratio = draws.uniform(self.config.low, self.config.high)
        deviation = np.sqrt(np.mean(np.square(samples))) * 10 ** (-ratio / 20)
        noise = draws.standard_normal(samples.shape, np.float32)
        return samples + np.float32(deviation) * noise, rate
