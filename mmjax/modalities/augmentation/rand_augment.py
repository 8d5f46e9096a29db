"""RandAugment (Cubuk et al., 2020): random sequences of image operations with a shared magnitude."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps

from mmjax.config import Count, Within
from mmjax.modalities.augmentation.base import Augmentation
from mmjax.modalities.image import border_colour

_Operation = Callable[[PIL.Image.Image, float], PIL.Image.Image]


def _affine(image: PIL.Image.Image, *coefficients: float) -> PIL.Image.Image:
    """Applies the affine map with Pillow's coefficients a to f."""
    method, resampling = PIL.Image.Transform.AFFINE, PIL.Image.Resampling.BILINEAR
    return image.transform(image.size, method, coefficients, resampling, fillcolor=border_colour(np.asarray(image)))


def _enhance(enhancer: type) -> _Operation:
    return lambda image, strength: enhancer(image).enhance(1.0 + 0.9 * strength)


def _rotate(image: PIL.Image.Image, strength: float) -> PIL.Image.Image:
    fill = border_colour(np.asarray(image))
    return image.rotate(30 * strength, PIL.Image.Resampling.BILINEAR, fillcolor=fill)


OPERATIONS: dict[str, _Operation] = {
    "identity": lambda image, strength: image,
    "autocontrast": lambda image, strength: PIL.ImageOps.autocontrast(image),
    "equalize": lambda image, strength: PIL.ImageOps.equalize(image),
    "rotate": _rotate,
    "solarize": lambda image, strength: PIL.ImageOps.solarize(image, round(256 * (1 - abs(strength)))),
    "posterize": lambda image, strength: PIL.ImageOps.posterize(image, 8 - round(4 * abs(strength))),
    "color": _enhance(PIL.ImageEnhance.Color),
    "contrast": _enhance(PIL.ImageEnhance.Contrast),
    "brightness": _enhance(PIL.ImageEnhance.Brightness),
    "sharpness": _enhance(PIL.ImageEnhance.Sharpness),
    "shear_x": lambda image, strength: _affine(image, 1, 0.3 * strength, 0, 0, 1, 0),
    "shear_y": lambda image, strength: _affine(image, 1, 0, 0, 0.3 * strength, 1, 0),
    "translate_x": lambda image, strength: _affine(image, 1, 0, 0.3 * strength * image.width, 0, 1, 0),
    "translate_y": lambda image, strength: _affine(image, 1, 0, 0, 0, 1, 0.3 * strength * image.height),
}
"""The fourteen operations of the paper. Each takes a strength in [-1, 1]; its sign is the direction, if any."""


class RandAugment(Augmentation):
    """Applies a sequence of operations drawn uniformly from `OPERATIONS`."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `RandAugment`.

        Attributes:
          count: number of operations per image.
          magnitude: strength from 0 to 10; autocontrast and equalize ignore it.
        """

        count: Count = 2
        magnitude: Annotated[float, Within(0.0, 10.0)] = 9.0

    def __call__(self, raw: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Transforms uint8 [H, W] or [H, W, C], keeping the shape and the alpha channel."""
        indices = rng.integers(0, len(OPERATIONS), self.config.count)
        signs = rng.integers(0, 2, self.config.count) * 2 - 1
        colours = 3 if raw.ndim == 3 and raw.shape[2] >= 3 else 1
        pixels = raw if raw.ndim == 2 else raw[..., :colours] if colours == 3 else raw[..., 0]
        image = PIL.Image.fromarray(np.ascontiguousarray(pixels))
        for index, sign in zip(indices.tolist(), signs.tolist(), strict=True):
            image = list(OPERATIONS.values())[index](image, sign * self.config.magnitude / 10)
        result = np.asarray(image)
        if raw.ndim == 2:
            return result
        return np.concatenate([result.reshape(*raw.shape[:2], colours), raw[..., colours:]], axis=-1)
