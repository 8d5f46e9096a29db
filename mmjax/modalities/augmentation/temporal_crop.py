"""Random parts of clips, in time."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from mmjax.config import Within
from mmjax.modalities.clips import Clip, Frames, as_clip


class TemporalCrop:
    """Keeps a part of the clip, of a length and a beginning that are drawn uniformly."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Bounds.

        Attributes:
          smallest: length of the part, as a share of the clip; at least one frame is kept.
        """

        smallest: Annotated[float, Within(0.0, 1.0)] = 0.5

    def __init__(self, config: Config):
        self.config = config

    def __call__(self, raw: Clip, draws: np.random.Generator) -> Clip:
        """A shorter clip of the same rate."""
        frames, rate = as_clip(raw)
        share, place = draws.uniform(self.config.smallest, 1.0), draws.uniform(0.0, 1.0)
        count = max(1, round(share * len(frames)))
        begin = min(int(place * (len(frames) - count + 1)), len(frames) - count)
        return Clip(Frames(count, lambda number: frames[begin + number]), rate)
