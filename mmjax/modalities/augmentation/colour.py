"""Colour jitter (Krizhevsky et al., 2012; as in Chen et al., SimCLR, 2020)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from mmjax.config import Within
from mmjax.modalities.augmentation.base import Augmentation

# Luma weights of ITU-R BT.601.
_LUMA = np.array([0.299, 0.587, 0.114])
# RGB to YIQ, where hue is an angle.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
Strength = Annotated[float, Within(0.0, 1.0)]


class Colour(Augmentation):
    """Jitters brightness, contrast, saturation and hue, in this order.

    Greyscale images have neither saturation nor hue. The alpha channel is unchanged.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `Colour`.

        Attributes:
          brightness, contrast, saturation: the factor is drawn uniformly from [1 - value, 1 + value].
          hue: maximum hue rotation in units of 180 degrees.
        """

        brightness: Strength = 0.4
        contrast: Strength = 0.4
        saturation: Strength = 0.4
        hue: Strength = 0.1

    def __call__(self, raw: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Transforms uint8 [H, W] or [H, W, C], keeping the shape."""
        config = self.config
        brightness, contrast, saturation, hue = rng.uniform(-1.0, 1.0, 4)
        coloured = raw.ndim == 3 and raw.shape[2] >= 3
        if raw.ndim == 2:
            pixels, alpha = raw[..., None], raw[..., :0]
        else:
            count = 3 if coloured else 1
            pixels, alpha = raw[..., :count], raw[..., count:]
        values = pixels.astype(np.float64) * (1.0 + brightness * config.brightness)
        grey = values @ _LUMA if coloured else values[..., 0]
        values = grey.mean() + (values - grey.mean()) * (1.0 + contrast * config.contrast)
        if coloured:
            grey = (values @ _LUMA)[..., None]
            values = grey + (values - grey) * (1.0 + saturation * config.saturation)
            angle = np.pi * hue * config.hue
            rotation = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
            values = values @ (np.linalg.inv(_YIQ) @ rotation @ _YIQ).T
        jittered = np.clip(np.rint(values), 0, 255).astype(np.uint8)
        return jittered[..., 0] if raw.ndim == 2 else np.concatenate([jittered, alpha], axis=-1)
