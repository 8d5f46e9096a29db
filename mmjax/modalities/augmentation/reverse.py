"""Random time reversal of clips."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from mmjax.config import Within
from mmjax.modalities.augmentation.base import Augmentation
from mmjax.modalities.clips import Clip, LazyFrames, as_clip


class Reverse(Augmentation):
    """Reverses the frames of a clip. Unsuitable if labels depend on direction, such as opening and closing."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `Reverse`.

        Attributes:
          probability: probability of reversing each clip.
        """

        probability: Annotated[float, Within(0.0, 1.0)] = 0.5

    def __call__(self, raw: Clip, rng: np.random.Generator) -> Clip:
        """Transforms a clip, keeping its length and rate."""
        frames, rate = as_clip(raw)
        if rng.uniform(0.0, 1.0) >= self.config.probability:
            return Clip(frames, rate)
        return Clip(LazyFrames(len(frames), lambda index: frames[len(frames) - 1 - index]), rate)
