"""Image modality: resizes and normalises an image to float32 [height, width, channels]."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import PIL.Image
import PIL.ImageOps

from mmjax.config import AtLeast, Count
from mmjax.errors import UserError
from mmjax.modalities.filters import resize
from mmjax.modalities.raw_files import read_bytes
from mmjax.tokens import InputSpec

FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX"),
    *("PNG", "PPM", "SGI", "TGA", "TIFF", "WEBP"),
)
"""Image formats that are read, by their names in Pillow. Others are not images (EPS starts a program), or are rare."""

MAX_PIXELS = 80_000_000
"""Maximum number of pixels of an image, or a quarter of it at more than 8 bits: a file of some kilobytes may declare
more pixels than fit into memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """Options of resizing and normalisation, shared by images and video frames.

    Attributes:
      size: (height, width) in pixels.
      channels: 1 for greyscale, 3 for RGB.
      fit: handling of images with a different aspect ratio: "stretch" distorts, "pad" pads with the border's
        colour, "crop" crops the centre.
      resize: interpolation filter; all but "nearest" antialias when shrinking.
      mean, std: values in [0, 1] become (value - mean) / std; one number for all channels, or one per channel.
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
                raise ValueError(f"{name} has {count} numbers; give 1 or {self.channels} (channels)")


class Image:
    """Converts images of any size and mode to arrays of a fixed shape.

    Raw data is uint8 [H, W] (greyscale) or [H, W, C] with C = 1 (greyscale), 2 (greyscale, alpha), 3 (RGB) or 4 (RGBA).
    Transparent images are blended onto white.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(PreprocessConfig):
        """Options of `Image`.

        Attributes:
          range: (low, high), the values that map to 0 and 255 in greyscale files of more than 8 bits. A prepared
            dataset provides the range of its training split. None rejects such files.
          background: "any" leaves images unchanged. "dark" inverts images with a light border, so that photos and
            drawings of dark ink on white paper match the light-on-black digits of `digits` and MNIST.
          crop: "content" first removes margins of the border's colour; "none" keeps them. With `fit="pad"`, a digit on
            a large sheet then matches those of `digits`, which fill their image.
          patch: side of a patch in pixels, for packed images. Packed images keep their resolution, and their aspect
            ratio up to rounding to whole patches; `size` and `fit` are ignored.
          patches: maximum number of patches of a packed image, by default the row length; larger images are downscaled.
        """

        range: tuple[float, ...] | None = None
        background: Literal["any", "dark"] = "any"
        crop: Literal["none", "content"] = "none"
        patch: Count | None = None
        patches: Count | None = None

        def __post_init__(self):
            super().__post_init__()
            if self.range is not None and not (len(self.range) == 2 and self.range[0] < self.range[1]):
                raise ValueError(f"range = {self.range} is not (low, high); give for example (0, 4095)")

    measures: ClassVar[tuple[str, ...]] = ("height", "width")

    def __init__(self, config: Config):
        self.config, self._side = config, config.patch or 0
        # Fold (x / 255 - mean) / std into x * scale - offset.
        self._scale = (1 / (255 * np.asarray(config.std))).astype(np.float32)
        self._offset = (np.asarray(config.mean) / config.std).astype(np.float32)

    @property
    def spec(self) -> InputSpec:
        """[height, width, channels] float32, with a scalar mask."""
        return InputSpec((*self.config.size, self.config.channels), "float32", mask_rank=0)

    def process(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Converts uint8 [H, W] or [H, W, C] to (values [height, width, channels] float32, mask [] bool).

        Raises:
          ValueError: if `raw` is empty or has an unsupported dtype or shape.
        """
        pixels = self._pixels(raw)
        values = pixels.astype(np.float32) if pixels.shape[:2] == self.config.size else self._resize_to_fit(pixels)
        values = values.reshape(*self.config.size, self.config.channels)
        # In place: allocation would cost more than the arithmetic.
        values *= self._scale
        values -= self._offset
        return values, np.ones((), bool)

    def packed_spec(self, budget: int) -> InputSpec:
        """[budget, patch * patch * channels] float32, with positions (row, column).

        Raises:
          ValueError: if `patch` is not set.
        """
        side = self._side
        if not side:
            raise ValueError("packing images needs patch, which is not set; set it to the encoder's patch size")
        return InputSpec((budget, side**2 * self.config.channels), "float32", 1, {"patch": side}, axes=2)

    def lengths(self, measured: Mapping[str, np.ndarray], budget: int) -> np.ndarray:
        """Computes patches per image, int64 [records], limited by `patches` and `budget`."""
        rows, columns = self._grid(measured["height"], measured["width"], budget)
        return rows * columns

    def process_packed(self, raw: np.ndarray, max_elements: int) -> tuple[np.ndarray, np.ndarray]:
        """Converts uint8 [H, W] or [H, W, C] to (patches [n, patch * patch * channels], (row, column) [n, 2]), float32.

        Raises:
          ValueError: as in `process`.
        """
        pixels, side = self._pixels(raw), self._side
        height, width = pixels.shape[:2]
        rows, columns = (int(count) for count in self._grid(height, width, max_elements))
        values = resize(pixels, (rows * side, columns * side), self.config.resize)
        values = values.reshape(rows, side, columns, side, self.config.channels) * self._scale - self._offset
        values = values.swapaxes(1, 2).reshape(rows * columns, -1)
        positions = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
        return values, positions.reshape(-1, 2).astype(np.float32)

    def _grid(self, height, width, max_patches: int) -> tuple[np.ndarray, np.ndarray]:
        """Computes the patch grid (rows, columns) of images of this height and width, with at most `max_patches`."""
        side, limit = self._side, min(max_patches, self.config.patches or max_patches)
        shrink = np.minimum(1.0, np.sqrt(limit * side**2 / (np.asarray(height) * width)))
        exact = [shrink * length / side for length in (height, width)]
        rows, columns = (np.clip(np.rint(length), 1, limit) for length in exact)
        # Rounding to nearest may exceed the limit; rounding down does not.
        over = rows * columns > limit
        rows, columns = (
            np.where(over, np.clip(np.floor(length), 1, limit), rounded)
            for length, rounded in zip(exact, (rows, columns), strict=True)
        )
        return rows.astype(np.int64), columns.astype(np.int64)

    def read(self, argument: str, where: str) -> np.ndarray:
        """Reads an image file: PNG, JPEG, WebP or another format in `FORMATS`.

        Args:
          argument: path of the file.
          where: name of the flag, for messages.

        Returns:
          uint8 [H, W] or [H, W, C], rotated by its EXIF orientation; the first frame of an animation.

        Raises:
          UserError: if the file is missing, unreadable, truncated, too large, or not an image.
        """
        data = read_bytes(argument, where, "give the path of an image")
        try:
            with open_image(data) as opened:
                image = PIL.ImageOps.exif_transpose(opened)
                image.load()
        except PIL.UnidentifiedImageError:
            raise UserError(where, f"{argument!r} is not an image", "give a PNG, JPEG or WebP file") from None
        # Decoders raise many exception types on a damaged file, including SyntaxError and struct.error.
        except Exception as error:
            remedy = "give a complete PNG, JPEG or WebP file"
            raise UserError(where, f"{argument!r} cannot be read: {error}", remedy) from None
        if not is_deep(image):
            return to_uint8(image)
        if self.config.range is None:
            problem = f"{argument!r} has values of more than 8 bits, and this model was trained on none"
            raise UserError(where, problem, "convert it to 8 bits as the training data was")
        try:
            return grey_to_uint8(deep_grey(image), self.config.range)
        except ValueError as error:
            raise UserError(where, f"{argument!r} cannot be read: {error}", "give another image") from None

    def _pixels(self, raw: np.ndarray) -> np.ndarray:
        """Converts raw pixels to the configured channels and removes margins if `crop` is "content"."""
        pixels = self._convert_channels(np.asarray(raw))
        return _crop_to_content(pixels) if self.config.crop == "content" else pixels

    def _convert_channels(self, raw: np.ndarray) -> np.ndarray:
        """Converts raw pixels to uint8 [H, W] or [H, W, 3], and inverts light images if `background` is "dark"."""
        if raw.dtype != np.uint8 or raw.ndim not in (2, 3) or (raw.ndim == 3 and raw.shape[2] not in (1, 2, 3, 4)):
            raise ValueError(f"an image must be uint8 [H, W] or [H, W, C<=4], not {raw.dtype} {list(raw.shape)}")
        if raw.size == 0:
            raise ValueError("the image has no pixels")
        if raw.ndim == 2:
            raw = raw[..., None]
        if raw.shape[2] in (2, 4):
            raw = blend_onto_white(raw)
        if raw.shape[2] == 1:
            raw = raw[..., 0]
        if self.config.background == "dark" and _mean(border_colour(raw)) > 127:
            raw = 255 - raw
        if self.config.channels == 3 and raw.ndim == 2:
            return np.repeat(raw[..., None], 3, axis=2)
        if self.config.channels == 1 and raw.ndim == 3:
            return np.asarray(PIL.Image.fromarray(raw).convert("L"))
        return raw

    def _resize_to_fit(self, pixels: np.ndarray) -> np.ndarray:
        """Resizes according to `fit`, to float32 [height, width] or [height, width, 3] in [0, 255]."""
        (height, width), (rows, columns) = self.config.size, pixels.shape[:2]
        # Input pixels per output pixel.
        vertical, horizontal = rows / height, columns / width
        if self.config.fit == "crop":
            scale = min(vertical, horizontal)
            top, left = (rows - scale * height) / 2, (columns - scale * width) / 2
            return resize(pixels, (height, width), self.config.resize, (top, left, rows - top, columns - left))
        if self.config.fit == "pad":
            scale = max(vertical, horizontal)
            inner = max(1, round(rows / scale)), max(1, round(columns / scale))
            values = np.full((height, width, *pixels.shape[2:]), border_colour(pixels), np.float32)
            top, left = round((height - inner[0]) / 2), round((width - inner[1]) / 2)
            values[top : top + inner[0], left : left + inner[1]] = resize(pixels, inner, self.config.resize)
            return values
        return resize(pixels, (height, width), self.config.resize)


def _crop_to_content(pixels: np.ndarray) -> np.ndarray:
    """Crops an image to the pixels that differ from its border colour.

    The threshold, a quarter of the maximum difference, ignores shadows and paper noise. Images of a single colour are
    returned unchanged.
    """
    difference = np.abs(pixels.astype(np.int16) - np.asarray(border_colour(pixels), np.int16))
    if difference.ndim == 3:
        difference = difference.max(axis=2)
    rows, columns = difference.max(axis=1), difference.max(axis=0)
    threshold = rows.max() / 4
    if not threshold:
        return pixels
    return pixels[_span(rows > threshold), _span(columns > threshold)]


def _span(mask: np.ndarray) -> slice:
    """Returns the slice from the first to the last True."""
    return slice(int(mask.argmax()), len(mask) - int(mask[::-1].argmax()))


def border(pixels: np.ndarray) -> np.ndarray:
    """Returns the pixels along the four edges, [count] or [count, channels]."""
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def border_colour(pixels: np.ndarray) -> int | tuple[int, ...]:
    """Computes the (lower) median of the border of uint8 pixels, in Pillow's format: an int or a tuple."""
    # np.median takes five times as long on the borders of small images.
    ordered = np.sort(border(pixels), axis=0)
    median = ordered[(len(ordered) - 1) // 2]
    return tuple(map(int, median)) if median.ndim else int(median)


def _mean(colour: int | tuple[int, ...]) -> float:
    return sum(colour) / len(colour) if isinstance(colour, tuple) else colour


@contextlib.contextmanager
def open_image(data: bytes) -> Iterator[PIL.Image.Image]:
    """Opens an image file, without decoding its pixels.

    Raises:
      PIL.UnidentifiedImageError: if it has no format in `FORMATS`.
      ValueError: if it has more than `MAX_PIXELS` pixels.
      Exception: of many types, if it is damaged.
    """
    with warnings.catch_warnings():
        # Pillow warns of large images and of damaged metadata.
        warnings.simplefilter("ignore")
        with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            check_pixels(opened)
            yield opened


def check_pixels(image: PIL.Image.Image) -> None:
    """Raises ValueError if an image has more than `MAX_PIXELS` pixels, or a quarter of it at more than 8 bits."""
    limit = MAX_PIXELS // 4 if is_deep(image) else MAX_PIXELS
    if image.width * image.height > limit:
        raise ValueError(f"too large: {image.width} x {image.height} pixels are more than {limit:,}")


def blend_onto_white(pixels: np.ndarray) -> np.ndarray:
    """Blends uint8 [H, W, colours + alpha] onto white, to [H, W, colours]."""
    blended = np.empty((*pixels.shape[:2], pixels.shape[2] - 1), np.uint8)
    # In blocks of rows, since floats of all pixels take many times the memory of a large image.
    step = max(1, 2**20 // pixels[0].size)
    for start in range(0, len(pixels), step):
        part = pixels[start : start + step].astype(np.float32)
        alpha = part[..., -1:] / 255
        blended[start : start + step] = np.rint(part[..., :-1] * alpha + 255 * (1 - alpha))
    return blended


def is_deep(image: PIL.Image.Image) -> bool:
    """Returns True for a greyscale image of more than 8 bits: integers of 16 or 32 bits, or floats."""
    return image.mode.startswith(("I", "F"))


def deep_grey(image: PIL.Image.Image | np.ndarray) -> np.ndarray:
    """Returns the values of an image for which `is_deep` holds, float64 [H, W]; NaN where they are not finite.

    Raises:
      ValueError: if no value is finite.
    """
    values = np.asarray(image).astype(np.float64)
    values[~np.isfinite(values)] = np.nan
    if np.isnan(values).all():
        raise ValueError("no pixel has a finite value")
    return values


def grey_to_uint8(values: np.ndarray, limits: Sequence[float]) -> np.ndarray:
    """Maps values [H, W] linearly from [low, high] = `limits` to uint8 in [0, 255]. NaN becomes 0.

    Values outside the limits are clipped. Shared limits preserve differences in brightness between images.
    """
    low, high = limits
    levels = (values - low) * (255 / (high - low))
    return np.rint(np.clip(np.nan_to_num(levels), 0, 255)).astype(np.uint8)


def to_uint8(image: PIL.Image.Image) -> np.ndarray:
    """Converts an image of any 8-bit Pillow mode to uint8 [H, W] or [H, W, C].

    Raises:
      ValueError: if `is_deep(image)`.
    """
    if is_deep(image):
        raise ValueError("greyscale of more than 8 bits has no range here; convert it to 8 bits")
    alpha = image.has_transparency_data
    grey = image.mode in ("1", "L", "LA")
    return np.asarray(image.convert(("LA" if alpha else "L") if grey else ("RGBA" if alpha else "RGB")))
