"""Images: any picture becomes float32 [height, width, channels] of one size and scale."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated, Literal

import numpy as np
import PIL.Image
import PIL.ImageOps

from mmjax.config import AtLeast, Count
from mmjax.errors import UserError
from mmjax.tokens import InputSpec

_FILTERS = {
    "nearest": PIL.Image.Resampling.NEAREST,
    "box": PIL.Image.Resampling.BOX,
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "bicubic": PIL.Image.Resampling.BICUBIC,
    "lanczos": PIL.Image.Resampling.LANCZOS,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureConfig:
    """How a picture comes to one size and scale.

    Attributes:
      size: (height, width) in pixels.
      channels: 1 for grey, 3 for RGB.
      fit: how another aspect ratio comes to `size`: "stretch" the picture, "pad" it with its border's colour, or "crop"
        it in the middle.
      resize: the filter of resizing; all but "nearest" average over the area when they shrink.
      mean, std: subtracted from and divided into values in [0, 1]; one number for all channels, or one for each.
    """

    size: tuple[Count, ...] = (32, 32)
    channels: Literal[1, 3] = 3
    fit: Literal["stretch", "pad", "crop"] = "stretch"
    resize: Literal["nearest", "box", "bilinear", "bicubic", "lanczos"] = "bicubic"
    mean: tuple[float, ...] = (0.5,)
    std: tuple[Annotated[float, AtLeast(1e-6)], ...] = (0.5,)

    def __post_init__(self):
        if len(self.size) != 2:
            raise ValueError(f"size = {self.size} has {len(self.size)} numbers; give (height, width)")
        for name in ("mean", "std"):
            count = len(getattr(self, name))
            if count not in (1, self.channels):
                raise ValueError(f"{name} has {count} numbers; give 1 or {self.channels}, as there are channels")


class Image:
    """Makes pictures of any size, grey or in colour, into arrays of one shape.

    Raw data is uint8 [H, W] (grey) or [H, W, C] with C = 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA). What is
    transparent is laid on white, as on a page.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(PictureConfig):
        """How a picture becomes an array.

        Attributes:
          background: "any" leaves pictures as they are. "dark" inverts a picture whose border is light, so that dark
            ink on white paper, which is what people photograph and draw, looks like the light digits on black that
            `digits` and MNIST train on.
          crop: "content" first cuts off the margins, which have the colour of the border. With `fit="pad"` a digit on a
            large sheet then resembles those of `digits`, which fill their picture. "none" keeps them.
        """

        background: Literal["any", "dark"] = "any"
        crop: Literal["none", "content"] = "none"

    def __init__(self, config: Config):
        self.config = config
        self._mean = np.asarray(config.mean, np.float32)
        self._std = np.asarray(config.std, np.float32)

    @property
    def spec(self) -> InputSpec:
        """[height, width, channels] float32; the mask is one flag."""
        return InputSpec((*self.config.size, self.config.channels), "float32", mask_rank=0)

    def process(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Makes (values [height, width, channels] float32, mask [] bool) of uint8 [H, W] or [H, W, C].

        Raises:
          ValueError: if `raw` is not such an array.
        """
        pixels = self._pixels(np.asarray(raw))
        if self.config.crop == "content":
            pixels = _content(pixels)
        picture = PIL.Image.fromarray(pixels)
        if picture.size != self.config.size[::-1]:
            picture = self._resized(picture)
        values = np.asarray(picture, np.float32).reshape(self.spec.shape) / 255
        return (values - self._mean) / self._std, np.ones((), bool)

    def absent(self) -> tuple[np.ndarray, np.ndarray]:
        """Zeros and False."""
        return np.zeros(self.spec.shape, np.float32), np.zeros((), bool)

    def read(self, argument: str, where: str) -> np.ndarray:
        """Reads the picture file at the path `argument` (PNG, JPEG, WebP, … whatever Pillow knows).

        Returns:
          uint8 [H, W] or [H, W, C], upright as the camera's EXIF note says, the first frame of an animation.

        Raises:
          UserError: if the file is missing, cannot be read, is cut short, or is not a picture.
        """
        try:
            with PIL.Image.open(argument) as opened:
                picture = PIL.ImageOps.exif_transpose(opened)
                picture.load()
        except FileNotFoundError:
            raise UserError(where, f"there is no file {argument!r}", "give the path of a picture") from None
        except PIL.UnidentifiedImageError:
            raise UserError(where, f"{argument!r} is not a picture", "give a PNG, JPEG or WebP file") from None
        except PIL.Image.DecompressionBombError as error:
            raise UserError(where, f"{argument!r} is too large: {error}", "give a smaller picture") from None
        # A damaged file raises whatever the decoder of its format trips over, SyntaxError and struct.error included.
        except Exception as error:
            remedy = "give a whole PNG, JPEG or WebP file"
            raise UserError(where, f"{argument!r} cannot be read: {error}", remedy) from None
        return eight_bits(picture)

    def files(self) -> list[pathlib.Path]:
        """None."""
        return []

    def _pixels(self, raw: np.ndarray) -> np.ndarray:
        """Makes raw pixels uint8 [H, W] where the config says 1 channel, else [H, W, 3]."""
        if raw.dtype != np.uint8 or raw.ndim not in (2, 3) or (raw.ndim == 3 and raw.shape[2] not in (1, 2, 3, 4)):
            raise ValueError(f"an image is uint8 [H, W] or [H, W, 1 to 4], not {raw.dtype} {list(raw.shape)}")
        if raw.size == 0:
            raise ValueError("the image has no pixels")
        if raw.ndim == 2:
            raw = raw[..., None]
        if raw.shape[2] in (2, 4):
            colour, alpha = raw[..., :-1].astype(np.float32), raw[..., -1:].astype(np.float32) / 255
            raw = np.rint(colour * alpha + 255 * (1 - alpha)).astype(np.uint8)
        if raw.shape[2] == 1:
            raw = raw[..., 0]
        if self.config.background == "dark" and np.mean(border_colour(raw)) > 127:
            raw = 255 - raw
        if self.config.channels == 3 and raw.ndim == 2:
            return np.repeat(raw[..., None], 3, axis=2)
        if self.config.channels == 1 and raw.ndim == 3:
            return np.asarray(PIL.Image.fromarray(raw).convert("L"))
        return raw

    def _resized(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        height, width = self.config.size
        method = _FILTERS[self.config.resize]
        if self.config.fit == "crop":
            return PIL.ImageOps.fit(picture, (width, height), method)
        if self.config.fit == "pad":
            return PIL.ImageOps.pad(picture, (width, height), method, color=border_colour(np.asarray(picture)))
        return picture.resize((width, height), method)


def _content(pixels: np.ndarray) -> np.ndarray:
    """The part of a picture that differs from its border by a quarter of what the most different pixel does.

    The quarter leaves shadows and the noise of paper out. A picture of one colour stays whole.
    """
    difference = np.abs(pixels.astype(np.float32) - np.asarray(border_colour(pixels)))
    if difference.ndim == 3:
        difference = difference.max(axis=2)
    rows = np.flatnonzero(difference.max(axis=1) > difference.max() / 4)
    columns = np.flatnonzero(difference.max(axis=0) > difference.max() / 4)
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else pixels


def border(pixels: np.ndarray) -> np.ndarray:
    """The pixels along the four edges, [count] or [count, channels]."""
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def border_colour(pixels: np.ndarray) -> int | tuple[int, ...]:
    """The (lower) median of the border of uint8 pixels, in Pillow's form: a number for grey, or one a channel."""
    # np.median takes five times as long on borders of small pictures.
    levels = np.sort(border(pixels), axis=0)
    median = levels[(len(levels) - 1) // 2]
    return tuple(map(int, median)) if median.ndim else int(median)


def eight_bits(picture: PIL.Image.Image) -> np.ndarray:
    """Makes a picture of any Pillow mode uint8 [H, W] or [H, W, C], scaled so that 16-bit greys keep their range."""
    if picture.mode.startswith("I;16"):
        return (np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8)
    if picture.mode in ("I", "F"):
        # Pillow opens 16-bit PNG as "I" in some versions; clipping at 255 would turn it all white.
        values = np.asarray(picture, np.float64)
        top = values.max(initial=0)
        scale = 1.0 if top <= 255 else 255 / 65535 if top <= 65535 else 255 / top
        return np.clip(np.nan_to_num(values) * scale, 0, 255).astype(np.uint8)
    transparent = picture.has_transparency_data
    grey = picture.mode in ("1", "L", "LA")
    return np.asarray(picture.convert(("LA" if transparent else "L") if grey else ("RGBA" if transparent else "RGB")))
