"""Hidden parts of pictures (Zhong et al., Random Erasing Data Augmentation, 2020)."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

import numpy as np

from mmjax.config import AtLeast, Within


class Erase:
    """Fills a rectangle of a picture with noise, so that no single part decides."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """How often and how much.

        Attributes:
          probability: of erasing anything.
          smallest, largest: of the rectangle's area, as a share of the picture's.
          aspect: the largest aspect ratio of the rectangle, wide or tall.
        """

        probability: Annotated[float, Within(0.0, 1.0)] = 0.25
        smallest: Annotated[float, Within(0.0, 1.0)] = 0.02
        largest: Annotated[float, Within(0.0, 1.0)] = 0.33
        aspect: Annotated[float, AtLeast(1.0)] = 3.3

        def __post_init__(self):
            if self.smallest > self.largest:
                raise ValueError(f"smallest {self.smallest} exceeds largest {self.largest}; swap them")

    def __init__(self, config: Config):
        self.config = config

    def __call__(self, raw: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        """uint8 [H, W] or [H, W, C] of the same shape."""
        config = self.config
        height, width = raw.shape[:2]
        bound = math.log(config.aspect)
        chance, down, across = draws.uniform(0.0, 1.0, 3)
        area = draws.uniform(config.smallest, config.largest) * height * width
        aspect = math.exp(draws.uniform(-bound, bound))
        if chance >= config.probability:
            return raw
        # What is too long for the picture is made as long as it.
        tall = min(height, round(math.sqrt(area * aspect)))
        wide = min(width, round(math.sqrt(area / aspect)))
        top, left = int(down * (height - tall + 1)), int(across * (width - wide + 1))
        top, left = min(top, height - tall), min(left, width - wide)
        erased = raw.copy()
        part = erased[top : top + tall, left : left + wide]
        part[...] = draws.integers(0, 256, part.shape, np.uint8)
        if raw.ndim == 3 and raw.shape[2] in (2, 4):
            part[..., -1] = 255
        return erased
