"""Random affine transformation of images: rotation, shear, scaling and translation."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np
import PIL.Image

from mmjax.config import AtLeast, Within
from mmjax.modalities.augmentation.base import Augmentation
from mmjax.modalities.image import border_colour


class Affine(Augmentation):
    """Applies a random affine transformation. Pixels outside the image get the border's colour."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `Affine`: each parameter is drawn uniformly from [-maximum, maximum].

        Defaults suit small digits and letters.

        Attributes:
          rotate: maximum rotation in degrees.
          shear: maximum shear, the tangent of the slant angle.
          scale: maximum log scale factor, drawn separately for height and width; 0.1 is about 10 %.
          shift: maximum translation as a fraction of the height and of the width.
        """

        rotate: Annotated[float, Within(0.0, 180.0)] = 15.0
        shear: Annotated[float, AtLeast(0.0)] = 0.2
        scale: Annotated[float, AtLeast(0.0)] = 0.1
        shift: Annotated[float, Within(0.0, 1.0)] = 0.08

    def __call__(self, raw: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Transforms uint8 [H, W] or [H, W, C], keeping shape and dtype."""
        config = self.config
        rotate, shear, scale_y, scale_x, shift_y, shift_x = rng.uniform(-1.0, 1.0, 6)
        angle = np.deg2rad(rotate * config.rotate)
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        shear_matrix = np.array([[1.0, shear * config.shear], [0.0, 1.0]])
        # Pillow expects the inverse map, from output to input (x, y).
        matrix = rotation @ shear_matrix @ np.diag(np.exp([scale_x * config.scale, scale_y * config.scale]))
        height, width = raw.shape[:2]
        centre = np.array([width, height]) / 2
        offset = centre - matrix @ centre + np.array([shift_x * width, shift_y * height]) * config.shift
        coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])
        # Pillow accepts greyscale only as [H, W].
        flat = raw[..., 0] if raw.ndim == 3 and raw.shape[2] == 1 else raw
        mapped = PIL.Image.fromarray(flat).transform(
            (width, height),
            PIL.Image.Transform.AFFINE,
            coefficients,
            PIL.Image.Resampling.BILINEAR,
            fillcolor=border_colour(flat),
        )
        return np.asarray(mapped).reshape(raw.shape)
