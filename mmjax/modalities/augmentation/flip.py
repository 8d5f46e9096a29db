"""Mirror images."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from mmjax.config import Within

Probability = Annotated[float, Within(0.0, 1.0)]


class Flip:
    """Mirrors a picture left to right, or top to bottom. Not for writing, nor where a caption says left or right."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """How often.

        Attributes:
          horizontal: the probability of left to right.
          vertical: of top to bottom, for pictures without an up, as from above or under a microscope.
        """

        horizontal: Probability = 0.5
        vertical: Probability = 0.0

    def __init__(self, config: Config):
        self.config = config

    def __call__(self, raw: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        """uint8 [H, W] or [H, W, C] of the same shape."""
        across, down = draws.uniform(0.0, 1.0, 2)
        if across < self.config.horizontal:
            raw = raw[:, ::-1]
        return raw[::-1] if down < self.config.vertical else raw
