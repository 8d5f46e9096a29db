"""Images: PNG, JPEG, WebP and what else Pillow reads."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import io
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps

from mmjax.config import AtLeast, Count, Within
from mmjax.modalities.image import to_uint8
from mmjax.prepare import pictures
from mmjax.prepare.kinds.base import File, Kind, Unreadable

_SIDE = pictures.SIDE
_THUMBNAIL = 160
# Pixels of a side below which a picture has no crops.
_TINY = 16
_JPEG = b"\xff\xd8"


class Picture(NamedTuple):
    """uint8 [H, W] or [H, W, 2 to 4], and the PNG or JPEG file that holds just these pixels, if there is one."""

    pixels: np.ndarray
    file: bytes | None = None


class ImageKind(Kind):
    """A picture; stored as the PNG or JPEG file that it came in, others as PNG."""

    fault_names = ("blank",)
    suffixes = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """When an image is faulty, and when two are near duplicates.

        Attributes:
          blank: an image whose grey levels, of 0 to 255, all but one in a thousand lie within this range is blank.
          alike: share of the variance of one image that the other, cropped and scaled as fits best, must explain
            everywhere; see `mmjax.prepare.pictures.crop_similarity`.
        """

        blank: Annotated[float, AtLeast(0)] = 8.0
        similarity: Annotated[float, Within(0, 1)] = 0.87

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Reduce:
        """How much of an image is kept.

        Attributes:
          shortest: pixels of the shorter side, to which larger images shrink; by default they stay as they are. JPEG
            files are written anew with quality 95.
        """

        shortest: Count | None = None

    def decode(self, value: Any) -> Picture:
        if isinstance(value, np.ndarray):
            if value.dtype != np.uint8 or value.ndim not in (2, 3) or not value.size:
                raise Unreadable(f"an image is uint8 [H, W] or [H, W, C], not {value.dtype} {list(value.shape)}")
            return Picture(value[..., 0] if value.ndim == 3 and value.shape[2] == 1 else value)
        data = value.data if isinstance(value, File) else value
        if not isinstance(data, bytes):
            raise Unreadable(f"{value!r} is no image file")
        try:
            with PIL.Image.open(io.BytesIO(data)) as opened:
                kind, mode, upright = opened.format, opened.mode, opened.getexif().get(0x0112, 1) == 1
                frames = getattr(opened, "n_frames", 1)
                picture = PIL.ImageOps.exif_transpose(opened)
                picture.load()
        except PIL.UnidentifiedImageError:
            raise Unreadable("not a picture") from None
        # A damaged file raises whatever the decoder of its format trips over, SyntaxError and struct.error included.
        except Exception as error:
            raise Unreadable(str(error)) from None
        pixels = to_uint8(picture)
        plain = kind in ("PNG", "JPEG") and mode in ("L", "RGB", "RGBA") and upright and frames == 1
        return Picture(pixels, data if plain and not (mode != "RGBA" and picture.has_transparency_data) else None)

    def reduced(self, raw: Picture) -> Picture:
        height, width = raw.pixels.shape[:2]
        shortest = self.reduce.shortest
        if shortest is None or min(height, width) <= shortest:
            return raw
        size = tuple(max(1, round(side * shortest / min(height, width))) for side in (width, height))
        picture = PIL.Image.fromarray(raw.pixels).resize(size, PIL.Image.Resampling.LANCZOS)
        if raw.file is None or not raw.file.startswith(_JPEG):
            return Picture(np.asarray(picture))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=95)
        return self.decode(buffer.getvalue())

    def measure(self, raw: Picture) -> dict[str, float | int | str]:
        pixels = raw.pixels
        grey = _grey(pixels)
        low, high = np.quantile(grey, (0.0005, 0.9995))
        colour = pixels.reshape(*pixels.shape[:2], -1) / 255.0
        return {
            "height": pixels.shape[0],
            "width": pixels.shape[1],
            "channels": colour.shape[2],
            "mean": float(colour.mean()),
            "std": float(colour.std()),
            "range": float(high - low),
            "bytes": len(raw.file) if raw.file else pixels.size,
        }

    def faults(self, measured: Mapping[str, Any]) -> dict[str, str]:
        if measured["range"] <= self.config.blank:
            return {"blank": f"its grey levels lie within {measured['range']:.1f} of 255"}
        return {}

    def quality(self, measured: Mapping[str, Any]) -> float:
        return measured["height"] * measured["width"]

    def signature(self, raw: Picture) -> bytes:
        return thumbnail(raw.pixels) + bytes([min(255, *raw.pixels.shape[:2])])

    def hashes(self, signature: bytes) -> np.ndarray:
        return pictures.hash_image(_thumbnail(signature).mean(axis=2))

    def candidates(self, hashes: np.ndarray) -> np.ndarray:
        return pictures.candidates(hashes)

    def similarity(self, one: bytes, other: bytes) -> float:
        # A pixel of so few is a crop of a tenth, and another's digit looks like a crop of one's own.
        compare = pictures.overlay_similarity if min(one[-1], other[-1]) < _TINY else pictures.crop_similarity
        return compare(_thumbnail(one), _thumbnail(other))

    def features(self, raw: Picture) -> np.ndarray:
        size = 28
        picture = PIL.Image.fromarray(_rgb(raw.pixels)).resize((size, size), PIL.Image.Resampling.BICUBIC)
        values = np.asarray(picture, np.float32) / 255
        shapes, colours = gradients(values.mean(axis=2)), values.reshape(4, 7, 4, 7, 3).mean(axis=(1, 3))
        # Colours as such, without the light and dark that the shapes have already.
        colours = (colours - colours.mean(axis=2, keepdims=True)).reshape(-1)
        return np.concatenate([shapes, 4 * colours])

    def feature(self, tfds: Any, summary: Mapping[str, Any]) -> Any:
        return tfds.features.Image(shape=(None, None, _channels(summary)), encoding_format=None)

    def stored(self, raw: Picture, summary: Mapping[str, Any]) -> bytes:
        channels = _channels(summary)
        own = 1 if raw.pixels.ndim == 2 else raw.pixels.shape[2]
        if raw.file is not None and own == channels:
            return raw.file
        return _png(PIL.Image.fromarray(raw.pixels).convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))

    def placeholder(self, summary: Mapping[str, Any]) -> bytes:
        return _empty(_channels(summary))

    def restore(self, stored: bytes) -> np.ndarray:
        if stored.startswith(_JPEG):
            with contextlib.suppress(Exception):
                return _decoded(stored)
        with PIL.Image.open(io.BytesIO(stored)) as picture:
            return np.asarray(picture)

    def show(self, raw: Picture) -> str:
        picture = PIL.Image.fromarray(raw.pixels)
        height, width = raw.pixels.shape[:2]
        if max(picture.size) > _THUMBNAIL:
            picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
        data = base64.b64encode(_png(picture)).decode()
        return f'<img alt="" title="{width} x {height}" src="data:image/png;base64,{data}">'


def thumbnail(pixels: np.ndarray) -> bytes:
    """uint8 [_SIDE, _SIDE, 3] of a picture of any size."""
    picture = PIL.Image.fromarray(_rgb(pixels))
    # A crop of a small picture is compared at less than a pixel: enlarged smoothly, never by repeating pixels.
    return np.asarray(picture.resize((_SIDE, _SIDE), PIL.Image.Resampling.BICUBIC)).tobytes()


def gradients(grey: np.ndarray, cells: int = 7, bins: int = 8) -> np.ndarray:
    """Histograms of oriented gradients (Dalal and Triggs, 2005) of a square float picture [n, n].

    Each cell shares votes with its neighbours; blocks of 2 x 2 cells are scaled to length 1, twice, and cut off at 0.2
    in between.

    Returns:
      float32 [(cells - 1) ** 2 * 4 * bins].
    """
    down, right = np.gradient(grey)
    strength, angle = np.hypot(down, right), np.arctan2(down, right) % (2 * np.pi) / (2 * np.pi) * bins
    first, share = np.floor(angle).astype(int) % bins, angle % 1
    votes = np.zeros((bins, *grey.shape), np.float32)
    rows, columns = np.indices(grey.shape)
    votes[first, rows, columns] = strength * (1 - share)
    votes[(first + 1) % bins, rows, columns] += strength * share
    side = len(grey) / cells
    centres = (np.arange(cells) + 0.5) * side
    weights = np.maximum(0, 1 - np.abs(centres[:, None] - (np.arange(len(grey)) + 0.5)) / side)
    histogram = weights @ votes @ weights.T
    blocks = np.lib.stride_tricks.sliding_window_view(histogram, (2, 2), axis=(1, 2))
    blocks = blocks.transpose(1, 2, 0, 3, 4).reshape((cells - 1) ** 2, -1)
    for limit in (0.2, 1.0):
        length = np.sqrt(np.square(blocks).sum(axis=1, keepdims=True) + 1e-2)
        blocks = np.minimum(blocks / length, limit)
    return blocks.reshape(-1).astype(np.float32)


def _grey(pixels: np.ndarray) -> np.ndarray:
    return _rgb(pixels).mean(axis=2)


def _rgb(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]; what is transparent is laid on white."""
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2)
    if pixels.shape[2] in (2, 4):
        alpha = pixels[..., -1:].astype(np.float32) / 255
        pixels = np.rint(pixels[..., :-1] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3)) if pixels.shape[2] == 1 else pixels


def _thumbnail(signature: bytes) -> np.ndarray:
    return np.frombuffer(signature[:-1], np.uint8).reshape(_SIDE, _SIDE, 3).astype(np.float32)


def _channels(summary: Mapping[str, Any]) -> int:
    """Of all images of a column: what the one with the most needs."""
    return {1: 1, 2: 4, 3: 3, 4: 4}[int(summary["channels"]["largest"])] if summary else 3


def _decoded(data: bytes) -> np.ndarray:
    """The pixels of a JPEG file, in three quarters of the time that Pillow takes and to the last bit the same.

    Raises:
      ImportError: where simplejpeg is not installed.
      Exception: where it finds anything odd, which Pillow may read all the same.
    """
    import simplejpeg

    grey = simplejpeg.decode_jpeg_header(data)[2] == "Gray"
    pixels = simplejpeg.decode_jpeg(data, "GRAY" if grey else "RGB")
    return pixels[..., 0] if grey else pixels


def _png(picture: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@functools.cache
def _empty(channels: int) -> bytes:
    return _png(PIL.Image.new({1: "L", 3: "RGB", 4: "RGBA"}[channels], (1, 1)))
