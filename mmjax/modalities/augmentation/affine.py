"""Random affine maps of pictures: rotation, shear, stretching and shifts."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np
import PIL.Image

from mmjax.config import AtLeast, Within
from mmjax.modalities.image import border_colour


class Affine:
    """Draws each part of the map uniformly from its range around 0. What comes into view has the border's colour."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Bounds; the defaults suit small pictures of digits and letters.

        Attributes:
          rotate: in degrees.
          shear: tangent of the slant.
          scale: logarithm of the factor, drawn for height and width each; 0.1 is about 10 %.
          shift: as a part of the height and of the width.
        """

        rotate: Annotated[float, Within(0.0, 180.0)] = 15.0
        shear: Annotated[float, AtLeast(0.0)] = 0.2
        scale: Annotated[float, AtLeast(0.0)] = 0.1
        shift: Annotated[float, Within(0.0, 1.0)] = 0.08

    def __init__(self, config: Config):
        self.config = config

    def __call__(self, raw: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        """Maps uint8 [H, W] or [H, W, C]; shape and dtype stay."""
        config = self.config
        rotate, shear, tall, wide, down, right = draws.uniform(-1.0, 1.0, 6)
        angle = np.deg2rad(rotate * config.rotate)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        slant = np.array([[1.0, shear * config.shear], [0.0, 1.0]])
        # In Pillow's order (x, y), from a place in the result to its place in the source.
        matrix = turn @ slant @ np.diag(np.exp([wide * config.scale, tall * config.scale]))
        height, width = raw.shape[:2]
        centre = np.array([width, height]) / 2
        offset = centre - matrix @ centre + np.array([right * width, down * height]) * config.shift
        coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])
        # Pillow takes one grey channel as [H, W] only.
        flat = raw[..., 0] if raw.ndim == 3 and raw.shape[2] == 1 else raw
        mapped = PIL.Image.fromarray(flat).transform(
            (width, height),
            PIL.Image.Transform.AFFINE,
            coefficients,
            PIL.Image.Resampling.BILINEAR,
            fillcolor=border_colour(flat),
        )
        return np.asarray(mapped).reshape(raw.shape)
