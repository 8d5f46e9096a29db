"""Random parts of pictures (Szegedy et al., Going Deeper with Convolutions, 2015)."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

import numpy as np

from mmjax.config import AtLeast, Within

_TRIES = 10


class Crop:
    """Cuts out a part of random area and aspect ratio; its modality then brings it to size."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Bounds.

        Attributes:
          smallest: of the part's area, as a share of the picture's; the largest is all of it.
          aspect: the largest factor by which the part's aspect ratio differs from the picture's, wider or taller.
        """

        smallest: Annotated[float, Within(0.01, 1.0)] = 0.3
        aspect: Annotated[float, AtLeast(1.0)] = 4 / 3

    def __init__(self, config: Config):
        self.config = config

    def __call__(self, raw: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        """A part of uint8 [H, W] or [H, W, C]; the whole picture where ten draws do not fit into it."""
        height, width = raw.shape[:2]
        bound = math.log(self.config.aspect)
        # All draws at once, so that their number is the same for every picture.
        areas = draws.uniform(self.config.smallest, 1.0, _TRIES)
        factors = np.exp(draws.uniform(-bound, bound, _TRIES))
        across, down = draws.uniform(0.0, 1.0, 2)
        for area, factor in zip(areas, factors, strict=True):
            tall = max(1, round(height * math.sqrt(area / factor)))
            wide = max(1, round(width * math.sqrt(area * factor)))
            if tall <= height and wide <= width:
                top, left = int(down * (height - tall + 1)), int(across * (width - wide + 1))
                return raw[min(top, height - tall) :][:tall, min(left, width - wide) :][:, :wide]
        return raw
