"""Random erasing of images (Zhong et al., Random Erasing Data Augmentation, 2020)."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

import numpy as np

from mmjax.config import AtLeast, Within
from mmjax.modalities.augmentation.base import Augmentation


class Erase(Augmentation):
    """Replaces a random rectangle with noise, so that the model does not rely on a single region."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `Erase`.

        Attributes:
          probability: probability of erasing, per image.
          smallest: minimum area of the rectangle as a fraction of the image.
          largest: maximum area of the rectangle as a fraction of the image.
          aspect: the aspect ratio of the rectangle is drawn log-uniformly from [1 / aspect, aspect].
        """

        probability: Annotated[float, Within(0.0, 1.0)] = 0.25
        smallest: Annotated[float, Within(0.0, 1.0)] = 0.02
        largest: Annotated[float, Within(0.0, 1.0)] = 0.33
        aspect: Annotated[float, AtLeast(1.0)] = 3.3

        def __post_init__(self):
            if self.smallest > self.largest:
                raise ValueError(f"smallest {self.smallest} exceeds largest {self.largest}; swap them")

    def __call__(self, raw: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Transforms uint8 [H, W] or [H, W, C], keeping the shape."""
        config = self.config
        height, width = raw.shape[:2]
        bound = math.log(config.aspect)
        chance, y, x = rng.uniform(0.0, 1.0, 3)
        area = rng.uniform(config.smallest, config.largest) * height * width
        aspect = math.exp(rng.uniform(-bound, bound))
        if chance >= config.probability:
            return raw
        # Clip the rectangle to the image.
        box_height = min(height, round(math.sqrt(area * aspect)))
        box_width = min(width, round(math.sqrt(area / aspect)))
        top, left = int(y * (height - box_height + 1)), int(x * (width - box_width + 1))
        top, left = min(top, height - box_height), min(left, width - box_width)
        erased = raw.copy()
        region = erased[top : top + box_height, left : left + box_width]
        region[...] = rng.integers(0, 256, region.shape, np.uint8)
        if raw.ndim == 3 and raw.shape[2] in (2, 4):
            region[..., -1] = 255
        return erased
