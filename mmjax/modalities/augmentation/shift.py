"""Recordings that begin later."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from mmjax.config import AtLeast
from mmjax.modalities.audio import Waveform


class Shift:
    """Puts silence of a length drawn uniformly before a recording."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Bounds.

        Attributes:
          longest: the longest silence in seconds.
        """

        longest: Annotated[float, AtLeast(0.0)] = 0.1

    def __init__(self, config: Config):
        self.config = config

    def __call__(self, raw: Waveform, draws: np.random.Generator) -> Waveform:
        """(samples [n] or [n, channels], rate), longer by the silence."""
        samples, rate = raw
        pause = round(draws.uniform(0.0, self.config.longest) * rate)
        return np.concatenate([np.zeros((pause, *samples.shape[1:]), samples.dtype), samples]), rate
