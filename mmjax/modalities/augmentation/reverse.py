"""Clips that run backwards."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from mmjax.config import Within
from mmjax.modalities.clips import Clip, Frames, as_clip


class Reverse:
    """Plays a clip from its end. Not where what happens has a direction, such as opening and closing."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """How often.

        Attributes:
          probability: of each clip.
        """

        probability: Annotated[float, Within(0.0, 1.0)] = 0.5

    def __init__(self, config: Config):
        self.config = config

    def __call__(self, raw: Clip, draws: np.random.Generator) -> Clip:
        """A clip of the same length and rate."""
        frames, rate = as_clip(raw)
        if draws.uniform(0.0, 1.0) >= self.config.probability:
            return Clip(frames, rate)
        return Clip(Frames(len(frames), lambda number: frames[len(frames) - 1 - number]), rate)
