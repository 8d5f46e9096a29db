"""Random flips of images."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from mmjax.config import Within
from mmjax.modalities.augmentation.base import Augmentation

Probability = Annotated[float, Within(0.0, 1.0)]


class Flip(Augmentation):
    """Flips images horizontally or vertically. Unsuitable for images of text, or if captions mention left or right."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `Flip`.

        Attributes:
          horizontal: probability of a horizontal flip.
          vertical: probability of a vertical flip, for images without an upright direction, such as aerial or
            microscope images.
        """

        horizontal: Probability = 0.5
        vertical: Probability = 0.0

    def __call__(self, raw: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Transforms uint8 [H, W] or [H, W, C], keeping the shape."""
        horizontal, vertical = rng.uniform(0.0, 1.0, 2)
        if horizontal < self.config.horizontal:
            raw = raw[:, ::-1]
        return raw[::-1] if vertical < self.config.vertical else raw
