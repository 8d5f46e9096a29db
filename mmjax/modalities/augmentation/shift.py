"""Random time shift of recordings."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from mmjax.config import AtLeast
from mmjax.modalities.augmentation.base import Augmentation
from mmjax.modalities.recordings import Waveform


class Shift(Augmentation):
    """Prepends silence of random, uniform duration."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `Shift`.

        Attributes:
          longest: maximum duration of the silence in seconds.
        """

        longest: Annotated[float, AtLeast(0.0)] = 0.1

    def __call__(self, raw: Waveform, rng: np.random.Generator) -> Waveform:
        """Transforms (samples [n] or [n, channels], rate) to ([n + silence] or [n + silence, channels], rate)."""
        samples, rate = raw
        silence = round(rng.uniform(0.0, self.config.longest) * rate)
        return np.concatenate([np.zeros((silence, *samples.shape[1:]), samples.dtype), samples]), rate
