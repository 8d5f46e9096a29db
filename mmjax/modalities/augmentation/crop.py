"""Random resized crop of images (Szegedy et al., Going Deeper with Convolutions, 2015)."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

import numpy as np

from mmjax.config import AtLeast, Within
from mmjax.modalities.augmentation.base import Augmentation

_ATTEMPTS = 10


class Crop(Augmentation):
    """Crops a region of random area and aspect ratio. The image modality resizes it afterwards."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `Crop`.

        Attributes:
          smallest: minimum area of the crop as a fraction of the image; the maximum is 1.
          aspect: the crop's aspect ratio is the image's times a factor drawn log-uniformly from [1 / aspect, aspect].
        """

        smallest: Annotated[float, Within(0.01, 1.0)] = 0.3
        aspect: Annotated[float, AtLeast(1.0)] = 4 / 3

    def __call__(self, raw: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Crops uint8 [H, W] or [H, W, C]. Returns the whole image if none of ten random crops fits into it."""
        height, width = raw.shape[:2]
        bound = math.log(self.config.aspect)
        # Draw all attempts at once, so that every image uses the same number of random numbers.
        areas = rng.uniform(self.config.smallest, 1.0, _ATTEMPTS)
        factors = np.exp(rng.uniform(-bound, bound, _ATTEMPTS))
        x, y = rng.uniform(0.0, 1.0, 2)
        for area, factor in zip(areas, factors, strict=True):
            rows = max(1, round(height * math.sqrt(area / factor)))
            columns = max(1, round(width * math.sqrt(area * factor)))
            if rows <= height and columns <= width:
                top, left = int(y * (height - rows + 1)), int(x * (width - columns + 1))
                return raw[min(top, height - rows) :][:rows, min(left, width - columns) :][:, :columns]
        return raw
