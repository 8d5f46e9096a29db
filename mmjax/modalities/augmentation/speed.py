"""Speed perturbation of recordings, which also changes pitch and formants (Ko et al., Audio Augmentation, 2015)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from mmjax.config import Within
from mmjax.modalities.augmentation.base import Augmentation
from mmjax.modalities.recordings import Waveform, mono


class Speed(Augmentation):
    """Resamples by a random factor with linear interpolation."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `Speed`.

        Attributes:
          change: the factor is drawn uniformly from [1 - change, 1 + change].
        """

        change: Annotated[float, Within(0.0, 0.9)] = 0.1

    def __call__(self, raw: Waveform, rng: np.random.Generator) -> Waveform:
        """Resamples (samples [n] or [n, channels], rate) to (mono float32 [m], rate)."""
        samples, rate = mono(raw[0]), raw[1]
        factor = 1.0 + rng.uniform(-1.0, 1.0) * self.config.change
        positions = np.arange(0, len(samples) - 1, factor)
        lower = positions.astype(np.int64)
        fraction = (positions - lower).astype(np.float32)
        return samples[lower] * (1 - fraction) + samples[lower + 1] * fraction, rate
