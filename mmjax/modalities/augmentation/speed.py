"""Recordings played faster or slower, pitch and formants included (Ko et al., Audio Augmentation, 2015)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from mmjax.config import Within
from mmjax.modalities.audio import Waveform, mono


class Speed:
    """Resamples by a factor drawn uniformly, by linear interpolation."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Bounds.

        Attributes:
          change: the factor lies between 1 - `change` and 1 + `change`.
        """

        change: Annotated[float, Within(0.0, 0.9)] = 0.1

    def __init__(self, config: Config):
        self.config = config

    def __call__(self, raw: Waveform, draws: np.random.Generator) -> Waveform:
        """(samples [n] or [n, channels], rate) to float32 [m], the mean of the channels, and the same rate."""
        samples, rate = mono(raw[0]), raw[1]
        factor = 1.0 + draws.uniform(-1.0, 1.0) * self.config.change
        places = np.arange(0, len(samples) - 1, factor)
        below = places.astype(np.int64)
        part = (places - below).astype(np.float32)
        return samples[below] * (1 - part) + samples[below + 1] * part, rate
