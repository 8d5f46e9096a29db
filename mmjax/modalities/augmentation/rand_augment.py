"""RandAugment (Cubuk et al., 2020): a few of many changes of pictures, all of one strength."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps

from mmjax.config import Count, Within
from mmjax.modalities.image import border_colour

_Change = Callable[[PIL.Image.Image, float], PIL.Image.Image]


def _affine(*coefficients: Callable[[float, int, int], float]) -> _Change:
    """From a place in the result to its place in the source, as (a, b, c, d, e, f) of the strength and the size."""

    def change(picture: PIL.Image.Image, strength: float) -> PIL.Image.Image:
        width, height = picture.size
        numbers = tuple(make(strength, width, height) for make in coefficients)
        fill = border_colour(np.asarray(picture))
        return picture.transform(
            picture.size, PIL.Image.Transform.AFFINE, numbers, PIL.Image.Resampling.BILINEAR, fillcolor=fill
        )

    return change


def _enhance(enhancer: type) -> _Change:
    return lambda picture, strength: enhancer(picture).enhance(1.0 + 0.9 * strength)


def _rotate(picture: PIL.Image.Image, strength: float) -> PIL.Image.Image:
    fill = border_colour(np.asarray(picture))
    return picture.rotate(30 * strength, PIL.Image.Resampling.BILINEAR, fillcolor=fill)


def _zero(strength: float, width: int, height: int) -> float:
    return 0.0


def _one(strength: float, width: int, height: int) -> float:
    return 1.0


def _shear(strength: float, width: int, height: int) -> float:
    return 0.3 * strength


CHANGES: dict[str, _Change] = {
    "identity": lambda picture, strength: picture,
    "autocontrast": lambda picture, strength: PIL.ImageOps.autocontrast(picture),
    "equalize": lambda picture, strength: PIL.ImageOps.equalize(picture),
    "rotate": _rotate,
    "solarize": lambda picture, strength: PIL.ImageOps.solarize(picture, round(256 * (1 - abs(strength)))),
    "posterize": lambda picture, strength: PIL.ImageOps.posterize(picture, 8 - round(4 * abs(strength))),
    "color": _enhance(PIL.ImageEnhance.Color),
    "contrast": _enhance(PIL.ImageEnhance.Contrast),
    "brightness": _enhance(PIL.ImageEnhance.Brightness),
    "sharpness": _enhance(PIL.ImageEnhance.Sharpness),
    "shear_x": _affine(_one, _shear, _zero, _zero, _one, _zero),
    "shear_y": _affine(_one, _zero, _zero, _shear, _one, _zero),
    "translate_x": _affine(_one, _zero, lambda s, w, h: 0.3 * s * w, _zero, _one, _zero),
    "translate_y": _affine(_one, _zero, _zero, _zero, _one, lambda s, w, h: 0.3 * s * h),
}
"""The fourteen changes of the paper; each takes a strength in [-1, 1], whose sign is a direction where there is one."""


class RandAugment:
    """Applies changes that are drawn uniformly from `CHANGES`, one after the other."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """How many and how strong.

        Attributes:
          count: changes of each picture.
          magnitude: 0 to 10 for the strongest. Two changes, autocontrast and equalize, are always whole.
        """

        count: Count = 2
        magnitude: Annotated[float, Within(0.0, 10.0)] = 9.0

    def __init__(self, config: Config):
        self.config = config

    def __call__(self, raw: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        """uint8 [H, W] or [H, W, C] of the same shape; transparency stays as it is."""
        chosen = draws.integers(0, len(CHANGES), self.config.count)
        signs = draws.integers(0, 2, self.config.count) * 2 - 1
        colours = 3 if raw.ndim == 3 and raw.shape[2] >= 3 else 1
        light = raw if raw.ndim == 2 else raw[..., :colours] if colours == 3 else raw[..., 0]
        picture = PIL.Image.fromarray(np.ascontiguousarray(light))
        for number, sign in zip(chosen.tolist(), signs.tolist(), strict=True):
            picture = list(CHANGES.values())[number](picture, sign * self.config.magnitude / 10)
        changed = np.asarray(picture)
        if raw.ndim == 2:
            return changed
        return np.concatenate([changed.reshape(*raw.shape[:2], colours), raw[..., colours:]], axis=-1)
