"""Images: PNG, JPEG, WebP and the other formats in `mmjax.modalities.image.FORMATS`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps

from mmjax.config import AtLeast, Count, Formerly, Within
from mmjax.modalities.image import deep_grey, grey_to_uint8, is_deep, open_image, to_uint8
from mmjax.prepare import picture_signature, pictures
from mmjax.prepare.kinds.base import File, Kind, Numbers, Unreadable, data_uri
from mmjax.prepare.pixels import grey_quantiles, mean_and_std, to_rgb

_SIDE = pictures.SIDE
_THUMBNAIL = 160
_JPEG = b"\xff\xd8"


class Picture(NamedTuple):
    """Pixels uint8 [H, W] or [H, W, 2 to 4], and the PNG or JPEG file with exactly these pixels, or None.

    Greyscale of more than 8 bits is float64 [H, W], NaN where a value is not finite.
    """

    pixels: np.ndarray
    file: bytes | None = None


class ImageKind(Kind):
    """An image. PNG and JPEG files are stored unchanged, other images as PNG.

    Greyscale of more than 8 bits (CT, depth, microscopy) is mapped to 8 bits with one range for all rows, that of the
    training split.
    """

    fault_names = ("blank",)
    suffixes = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Thresholds of the image checks.

        Attributes:
          blank: maximum grey level range (of 255, over the central 99.9 % of the pixels) of a blank image.
          similarity: minimum similarity of near duplicates: the fraction of one image's variance that the other,
            optimally cropped and scaled, explains in every block; see `mmjax.prepare.pictures.crop_similarity`.
            Drawings on a flat background are not cropped, and each block's own variance counts; see
            `mmjax.prepare.drawings`.
        """

        blank: Annotated[float, AtLeast(0)] = 8.0
        similarity: Annotated[float, Within(0, 1), Formerly("alike")] = 0.87

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Reduce:
        """Downsampling of images.

        Attributes:
          range: (low, high), which greyscale images of more than 8 bits are mapped from; by default the range of the
            training split, of which each image may exceed 0.05 % of its pixels at each end.
          shortest: maximum length of the shorter side in pixels; larger images are resized, and JPEG files re-encoded
            at quality 95. None keeps every size.
        """

        range: tuple[float, ...] | None = None
        shortest: Count | None = None

        def __post_init__(self):
            if self.range is not None and not (len(self.range) == 2 and self.range[0] < self.range[1]):
                raise ValueError(f"range = {self.range} is not (low, high); give for example (0, 4095)")

    def decode(self, value: Any) -> Picture:
        if isinstance(value, np.ndarray):
            pixels = value[..., 0] if value.ndim == 3 and value.shape[2] == 1 else value
            deep = pixels.dtype.kind in "iuf" and pixels.dtype != np.uint8 and pixels.ndim == 2
            if not deep and (pixels.dtype != np.uint8 or pixels.ndim not in (2, 3)) or not pixels.size:
                problem = f"not {value.dtype} {list(value.shape)}"
                raise Unreadable(f"an image must be uint8 [H, W] or [H, W, C], or greyscale [H, W], {problem}")
            return Picture(_deep(pixels) if deep else pixels)
        data = value.data if isinstance(value, File) else value
        if not isinstance(data, bytes):
            raise Unreadable(f"{value!r} is not an image file")
        try:
            with open_image(data) as opened:
                file_format, mode, upright = opened.format, opened.mode, opened.getexif().get(0x0112, 1) == 1
                frames = getattr(opened, "n_frames", 1)
                image = PIL.ImageOps.exif_transpose(opened)
                image.load()
        except PIL.UnidentifiedImageError:
            raise Unreadable("not an image") from None
        # Damaged files raise many types of errors, including SyntaxError and struct.error, depending on the decoder.
        except Exception as error:
            raise Unreadable(str(error)) from None
        if is_deep(image):
            return Picture(_deep(image))
        pixels = to_uint8(image)
        plain = file_format in ("PNG", "JPEG") and mode in ("L", "RGB", "RGBA") and upright and frames == 1
        return Picture(pixels, data if plain and not (mode != "RGBA" and image.has_transparency_data) else None)

    def reduced(self, raw: Picture) -> Picture:
        height, width = raw.pixels.shape[:2]
        shortest = self.reduce.shortest
        if shortest is None or min(height, width) <= shortest:
            return raw
        size = tuple(max(1, round(side * shortest / min(height, width))) for side in (width, height))
        if raw.pixels.dtype != np.uint8:
            return Picture(_resized(raw.pixels, size, PIL.Image.Resampling.LANCZOS))
        image = PIL.Image.fromarray(raw.pixels).resize(size, PIL.Image.Resampling.LANCZOS)
        if raw.file is None or not raw.file.startswith(_JPEG):
            return Picture(np.asarray(image))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=95)
        return self.decode(buffer.getvalue())

    def measure(self, raw: Picture) -> dict[str, float | int | str]:
        pixels = raw.pixels
        if pixels.dtype != np.uint8:
            return _measure_deep(pixels)
        low, high = grey_quantiles(pixels, (0.0005, 0.9995))
        mean, std = mean_and_std(pixels)
        return {
            "height": pixels.shape[0],
            "width": pixels.shape[1],
            "channels": 1 if pixels.ndim == 2 else pixels.shape[2],
            "mean": mean,
            "std": std,
            "range": float(high - low),
            "bytes": len(raw.file) if raw.file else pixels.size,
        }

    def faults(self, measured: Mapping[str, Any]) -> dict[str, str]:
        if "low" in measured:
            same = measured["smallest"] == measured["largest"]
            return {"blank": f"all values are {measured['smallest']:g}"} if same else {}
        if measured["range"] <= self.config.blank:
            return {"blank": f"grey levels span only {measured['range']:.1f} of 255"}
        return {}

    def quality(self, measured: Mapping[str, Any]) -> float:
        return measured["height"] * measured["width"]

    def signature(self, raw: Picture) -> bytes:
        if raw.pixels.dtype == np.uint8:
            rgb = to_rgb(raw.pixels)
            small: np.ndarray = np.frombuffer(thumbnail(rgb), np.uint8).reshape(_SIDE, _SIDE, 3)
            return picture_signature.make(raw.pixels, rgb, small, 0.0, 255.0).pack()
        small = _resized(raw.pixels, (_SIDE, _SIDE), PIL.Image.Resampling.BICUBIC).astype(np.float32)[..., None]
        low, high = float(np.nanmin(raw.pixels)), float(np.nanmax(raw.pixels))
        rgb = to_rgb(self.rendered(raw, {}).pixels)
        return picture_signature.make(raw.pixels, rgb, small, low, high).pack()

    def hashes(self, signature: bytes) -> np.ndarray:
        return picture_signature.hashes(signature)

    def candidates(self, hashes: np.ndarray) -> np.ndarray:
        return pictures.candidates(hashes)

    def similarity(self, a: bytes, b: bytes) -> float:
        return picture_signature.similarity(a, b)

    def features(self, raw: Picture) -> np.ndarray:
        size = 28
        pixels = self.rendered(raw, {}).pixels
        image = PIL.Image.fromarray(to_rgb(pixels)).resize((size, size), PIL.Image.Resampling.BICUBIC)
        values = np.asarray(image, np.float32) / 255
        shapes, colours = gradients(values.mean(axis=2)), values.reshape(4, 7, 4, 7, 3).mean(axis=(1, 3))
        # Chroma only: luminance is already in the gradients.
        colours = (colours - colours.mean(axis=2, keepdims=True)).reshape(-1)
        return np.concatenate([shapes, 4 * colours])

    def summarise_training(self, numbers: Numbers) -> dict[str, Any]:
        """Range of greyscale images of more than 8 bits: {"limits": [low, high]}, {} without such images."""
        low, high = (numbers.get(name, np.zeros(0)) for name in ("low", "high"))
        if np.isnan(low).all():
            return {}
        limits = self.reduce.range or (float(np.nanmin(low)), float(np.nanmax(high)))
        # Without any difference, as in constant images, the range is one unit.
        return {"limits": list(limits) if limits[0] < limits[1] else [limits[0], limits[0] + 1]}

    def dataset_options(self, summary: Mapping[str, Any], numbers: Numbers) -> dict[str, Any]:
        """The range with which `predict` reads files of more than 8 bits."""
        return {"range": summary["limits"]} if "limits" in summary else {}

    def rendered(self, raw: Picture, summary: Mapping[str, Any]) -> Picture:
        if raw.pixels.dtype == np.uint8:
            return raw
        # Without a summary, as for features, the image's own range.
        low, high = np.nanmin(raw.pixels), np.nanmax(raw.pixels)
        limits = summary.get("limits", (low, high if high > low else low + 1))
        return Picture(grey_to_uint8(raw.pixels, limits))

    def tfds_feature(self, tfds: Any, summary: Mapping[str, Any]) -> Any:
        return tfds.features.Image(shape=(None, None, _channels(summary)), encoding_format=None)

    def stored(self, raw: Picture, summary: Mapping[str, Any]) -> bytes:
        channels, raw = _channels(summary), self.rendered(raw, summary)
        image_channels = 1 if raw.pixels.ndim == 2 else raw.pixels.shape[2]
        if raw.file is not None and image_channels == channels:
            return raw.file
        return png(PIL.Image.fromarray(raw.pixels).convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))

    def placeholder(self, summary: Mapping[str, Any]) -> bytes:
        return _empty(_channels(summary))

    def restore(self, stored: bytes) -> np.ndarray:
        if stored.startswith(_JPEG):
            with contextlib.suppress(Exception):
                return _decoded(stored)
        with open_image(stored) as image:
            return np.asarray(image)

    def show(self, raw: Picture) -> str:
        image = PIL.Image.fromarray(raw.pixels)
        height, width = raw.pixels.shape[:2]
        if max(image.size) > _THUMBNAIL:
            image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        return f'<img alt="" title="{width} x {height}" src="{data_uri("image/png", png(image))}">'


def _deep(image: PIL.Image.Image | np.ndarray) -> np.ndarray:
    try:
        return deep_grey(image)
    except ValueError as error:
        raise Unreadable(str(error)) from None


def _measure_deep(pixels: np.ndarray) -> dict[str, float | int | str]:
    """Measures greyscale of more than 8 bits, in its own unit."""
    values = pixels[np.isfinite(pixels)].astype(np.float64)
    # Values of pixels, never between them, so that a small image keeps its extremes.
    low, high = np.quantile(values, 0.0005, method="lower"), np.quantile(values, 0.9995, method="higher")
    return {
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "channels": 1,
        "mean": float(values.mean()),
        "std": float(values.std()),
        "low": float(low),
        "high": float(high),
        "smallest": float(values.min()),
        "largest": float(values.max()),
        "bytes": pixels.size,
    }


def _resized(pixels: np.ndarray, size: tuple[int, int], resampling: PIL.Image.Resampling) -> np.ndarray:
    """Resizes greyscale of more than 8 bits to (width, height). NaN counts as the smallest value."""
    # Pillow resizes float32, which would round values far from zero.
    low = np.nanmin(pixels)
    image = PIL.Image.fromarray(np.nan_to_num(pixels - low).astype(np.float32)).resize(size, resampling)
    return np.asarray(image, np.float64) + low


def thumbnail(pixels: np.ndarray) -> bytes:
    """Bytes of the image resized to uint8 [SIDE, SIDE, 3]."""
    image = PIL.Image.fromarray(to_rgb(pixels))
    # Small images are compared at sub-pixel crops, so upsample them with interpolation, never by nearest neighbour.
    return np.asarray(image.resize((_SIDE, _SIDE), PIL.Image.Resampling.BICUBIC)).tobytes()


def gradients(grey: np.ndarray, cells: int = 7, bins: int = 8) -> np.ndarray:
    """Histograms of oriented gradients of a square float image [n, n].

    Votes are interpolated between neighbouring cells. Blocks of 2 x 2 cells are normalized to length 1, clipped at 0.2
    and normalized again (Dalal and Triggs, Histograms of Oriented Gradients for Human Detection, 2005).

    Returns:
      float32 [(cells - 1) ** 2 * 4 * bins].
    """
    dy, dx = np.gradient(grey)
    magnitude, angle = np.hypot(dy, dx), np.arctan2(dy, dx) % (2 * np.pi) / (2 * np.pi) * bins
    first, fraction = np.floor(angle).astype(int) % bins, angle % 1
    votes = np.zeros((bins, *grey.shape), np.float32)
    rows, columns = np.indices(grey.shape)
    votes[first, rows, columns] = magnitude * (1 - fraction)
    votes[(first + 1) % bins, rows, columns] += magnitude * fraction
    side = len(grey) / cells
    centres = (np.arange(cells) + 0.5) * side
    weights = np.maximum(0, 1 - np.abs(centres[:, None] - (np.arange(len(grey)) + 0.5)) / side)
    histogram = weights @ votes @ weights.T
    blocks = np.lib.stride_tricks.sliding_window_view(histogram, (2, 2), axis=(1, 2))
    blocks = blocks.transpose(1, 2, 0, 3, 4).reshape((cells - 1) ** 2, -1)
    for limit in (0.2, 1.0):
        norm = np.sqrt(np.square(blocks).sum(axis=1, keepdims=True) + 1e-2)
        blocks = np.minimum(blocks / norm, limit)
    return blocks.reshape(-1).astype(np.float32)


def _channels(summary: Mapping[str, Any]) -> int:
    """Channel count to store: the maximum over the column's images, with grey + alpha stored as RGBA."""
    return {1: 1, 2: 4, 3: 3, 4: 4}[int(summary["channels"]["largest"])] if summary else 3


def _decoded(data: bytes) -> np.ndarray:
    """Decodes a JPEG file with simplejpeg: bit-identical to Pillow in three quarters of the time.

    Raises:
      ImportError: if simplejpeg is not installed.
      Exception: if the file is irregular; Pillow may still read it.
    """
    import simplejpeg

    grey = simplejpeg.decode_jpeg_header(data)[2] == "Gray"
    pixels = simplejpeg.decode_jpeg(data, "GRAY" if grey else "RGB")
    return pixels[..., 0] if grey else pixels


def png(image: PIL.Image.Image) -> bytes:
    """Encodes an image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@functools.cache
def _empty(channels: int) -> bytes:
    """PNG file of a single black pixel."""
    return png(PIL.Image.new({1: "L", 3: "RGB", 4: "RGBA"}[channels], (1, 1)))
