"""Images: any picture becomes float32 [height, width, channels] of one size and scale."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
import PIL.Image
import PIL.ImageOps

from mmjax.config import AtLeast, Count
from mmjax.errors import UserError
from mmjax.modalities.filters import resize
from mmjax.tokens import InputSpec


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
          patch: the side of a patch in pixels, of pictures that are packed. They keep their resolution and, up to whole
            patches, their aspect ratio; `size` and `fit` are not asked.
          patches: most patches of a packed picture, by default a whole row; one that has more is made smaller.
        """

        background: Literal["any", "dark"] = "any"
        crop: Literal["none", "content"] = "none"
        patch: Count | None = None
        patches: Count | None = None

    measures: ClassVar[tuple[str, ...]] = ("height", "width")

    def __init__(self, config: Config):
        self.config, self._side = config, config.patch or 0
        # (x / 255 - mean) / std as one product and one difference.
        self._scale = (1 / (255 * np.asarray(config.std))).astype(np.float32)
        self._offset = (np.asarray(config.mean) / config.std).astype(np.float32)

    @property
    def spec(self) -> InputSpec:
        """[height, width, channels] float32; the mask is one flag."""
        return InputSpec((*self.config.size, self.config.channels), "float32", mask_rank=0)

    def process(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Makes (values [height, width, channels] float32, mask [] bool) of uint8 [H, W] or [H, W, C].

        Raises:
          ValueError: if `raw` is not such an array.
        """
        pixels = self._pixels(raw)
        values = pixels.astype(np.float32) if pixels.shape[:2] == self.config.size else self._resized(pixels)
        values = values.reshape(*self.config.size, self.config.channels)
        # In place: memory for each result would cost more than the arithmetic.
        values *= self._scale
        values -= self._offset
        return values, np.ones((), bool)

    def packed(self, budget: int) -> InputSpec:
        """[budget, patch * patch * channels] float32, with positions (row, column)."""
        side = self._side
        if not side:
            raise ValueError("pictures are packed as patches, and patch is missing; set it to that of the encoder")
        return InputSpec((budget, side**2 * self.config.channels), "float32", 1, {"patch": side}, axes=2)

    def lengths(self, measured: Mapping[str, np.ndarray], budget: int) -> np.ndarray:
        """The patches of pictures of these heights and widths."""
        rows, columns = self._grid(measured["height"], measured["width"], budget)
        return rows * columns

    def elements(self, raw: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Makes (patches [n, patch * patch * channels], their (row, column) [n, 2]) of uint8 [H, W] or [H, W, C]."""
        pixels, side = self._pixels(raw), self._side
        height, width = pixels.shape[:2]
        rows, columns = (int(count) for count in self._grid(height, width, most))
        values = resize(pixels, (rows * side, columns * side), self.config.resize)
        values = values.reshape(rows, side, columns, side, self.config.channels) * self._scale - self._offset
        values = values.swapaxes(1, 2).reshape(rows * columns, -1)
        places = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
        return values, places.reshape(-1, 2).astype(np.float32)

    def _grid(self, height, width, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of patches of pictures of this height and width, `most` patches at most."""
        side, most = self._side, min(most, self.config.patches or most)
        shrink = np.minimum(1.0, np.sqrt(most * side**2 / (np.asarray(height) * width)))
        exact = [shrink * length / side for length in (height, width)]
        rows, columns = (np.clip(np.rint(length), 1, most) for length in exact)
        # Rounded up, they may be more than there may be; rounded down they are not.
        over = rows * columns > most
        rows, columns = (
            np.where(over, np.clip(np.floor(length), 1, most), rounded)
            for length, rounded in zip(exact, (rows, columns), strict=True)
        )
        return rows.astype(np.int64), columns.astype(np.int64)

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
        """Makes raw pixels uint8 [H, W] where the config says 1 channel, else [H, W, 3], without margins if asked."""
        pixels = self._coloured(np.asarray(raw))
        return _content(pixels) if self.config.crop == "content" else pixels

    def _coloured(self, raw: np.ndarray) -> np.ndarray:
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
        if self.config.background == "dark" and _mean(border_colour(raw)) > 127:
            raw = 255 - raw
        if self.config.channels == 3 and raw.ndim == 2:
            return np.repeat(raw[..., None], 3, axis=2)
        if self.config.channels == 1 and raw.ndim == 3:
            return np.asarray(PIL.Image.fromarray(raw).convert("L"))
        return raw

    def _resized(self, pixels: np.ndarray) -> np.ndarray:
        """float32 [height, width] or [height, width, 3] from 0 to 255."""
        (height, width), (rows, columns) = self.config.size, pixels.shape[:2]
        # Of a pixel of the result, in pixels of the picture.
        vertical, horizontal = rows / height, columns / width
        if self.config.fit == "crop":
            side = min(vertical, horizontal)
            top, left = (rows - side * height) / 2, (columns - side * width) / 2
            return resize(pixels, (height, width), self.config.resize, (top, left, rows - top, columns - left))
        if self.config.fit == "pad":
            side = max(vertical, horizontal)
            inner = max(1, round(rows / side)), max(1, round(columns / side))
            values = np.full((height, width, *pixels.shape[2:]), border_colour(pixels), np.float32)
            top, left = round((height - inner[0]) / 2), round((width - inner[1]) / 2)
            values[top : top + inner[0], left : left + inner[1]] = resize(pixels, inner, self.config.resize)
            return values
        return resize(pixels, (height, width), self.config.resize)


def _content(pixels: np.ndarray) -> np.ndarray:
    """The part of a picture that differs from its border by a quarter of what the most different pixel does.

    The quarter leaves shadows and the noise of paper out. A picture of one colour stays whole.
    """
    difference = np.abs(pixels.astype(np.int16) - np.asarray(border_colour(pixels), np.int16))
    if difference.ndim == 3:
        difference = difference.max(axis=2)
    rows, columns = difference.max(axis=1), difference.max(axis=0)
    quarter = rows.max() / 4
    if not quarter:
        return pixels
    return pixels[_span(rows > quarter), _span(columns > quarter)]


def _span(differs: np.ndarray) -> slice:
    """From the first to the last that differs."""
    return slice(int(differs.argmax()), len(differs) - int(differs[::-1].argmax()))


def border(pixels: np.ndarray) -> np.ndarray:
    """The pixels along the four edges, [count] or [count, channels]."""
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def border_colour(pixels: np.ndarray) -> int | tuple[int, ...]:
    """The (lower) median of the border of uint8 pixels, in Pillow's form: a number for grey, or one a channel."""
    # np.median takes five times as long on borders of small pictures.
    levels = np.sort(border(pixels), axis=0)
    median = levels[(len(levels) - 1) // 2]
    return tuple(map(int, median)) if median.ndim else int(median)


def _mean(colour: int | tuple[int, ...]) -> float:
    return sum(colour) / len(colour) if isinstance(colour, tuple) else colour


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
