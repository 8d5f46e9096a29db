"""Random temporal crop of clips."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from mmjax.config import Within
from mmjax.modalities.augmentation.base import Augmentation
from mmjax.modalities.clips import Clip, LazyFrames, as_clip


class TemporalCrop(Augmentation):
    """Keeps a contiguous segment of random length and start, both uniform."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `TemporalCrop`.

        Attributes:
          smallest: minimum length as a fraction of the clip; at least one frame is kept.
        """

        smallest: Annotated[float, Within(0.0, 1.0)] = 0.5

    def __call__(self, raw: Clip, rng: np.random.Generator) -> Clip:
        """Crops a clip, keeping its frame rate."""
        frames, rate = as_clip(raw)
        fraction, offset = rng.uniform(self.config.smallest, 1.0), rng.uniform(0.0, 1.0)
        count = max(1, round(fraction * len(frames)))
        start = min(int(offset * (len(frames) - count + 1)), len(frames) - count)
        return Clip(LazyFrames(count, lambda index: frames[start + index]), rate)
