"""Image signatures for near-duplicate search."""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

import numpy as np
import PIL.Image

from mmjax.prepare import drawings, pictures
from mmjax.prepare.pixels import digest

_SIDE = pictures.SIDE
# Images with a shorter side below this many pixels are not compared with crops of each other.
_TINY = 16
# `side`, `deep`, `digest`, `low`, `high` of `PictureSignature`, and the side of its `detail`.
_HEADER = struct.Struct("<H?16sddH")


class PictureSignature(NamedTuple):
    """Signature of an image. Two signatures are equal if and only if the images are.

    Attributes:
      side: shorter side in pixels.
      deep: True for greyscale of more than 8 bits.
      digest: hash of the pixels.
      low, high: range of the values.
      thumbnail: uint8 [SIDE, SIDE, 3], or float32 [SIDE, SIDE, 1] if deep.
      detail: grey values of a drawing, uint8 [n, n], scaled from [low, high]; [0, 0] for other images.
    """

    side: int
    deep: bool
    digest: bytes
    low: float
    high: float
    thumbnail: np.ndarray
    detail: np.ndarray

    def pack(self) -> bytes:
        """Converts to bytes, which `unpack` reads."""
        values = (self.side, self.deep, self.digest, self.low, self.high, len(self.detail))
        # Scanned text compresses to a third.
        return _HEADER.pack(*values) + self.thumbnail.tobytes() + zlib.compress(self.detail.tobytes(), 1)


def unpack(packed: bytes) -> PictureSignature:
    """Reads the result of `PictureSignature.pack`."""
    *values, side = _HEADER.unpack_from(packed)
    deep = values[1]
    dtype, shape = (np.dtype(np.float32), (_SIDE, _SIDE, 1)) if deep else (np.dtype(np.uint8), (_SIDE, _SIDE, 3))
    start = _HEADER.size
    end = start + dtype.itemsize * int(np.prod(shape))
    small = np.frombuffer(packed[start:end], dtype).reshape(shape)
    detail = np.frombuffer(zlib.decompress(packed[end:]), np.uint8).reshape(side, side)
    return PictureSignature(*values, small, detail)  # type: ignore[call-arg]


def make(pixels: np.ndarray, rgb: np.ndarray, small: np.ndarray, low: float, high: float) -> PictureSignature:
    """Computes the signature of an image.

    Args:
      pixels: the decoded pixels, from which the digest is computed.
      rgb: the pixels as uint8 [H, W, 3].
      small: `PictureSignature.thumbnail`.
      low, high: range of the values.
    """
    grey = np.asarray(PIL.Image.fromarray(rgb).convert("L"))
    drawn = min(grey.shape) >= _TINY and drawings.is_drawing(grey)
    detail = drawings.detail(grey) if drawn else np.zeros((0, 0), np.uint8)
    side, deep = min(65535, *pixels.shape[:2]), small.dtype != np.uint8
    return PictureSignature(side, deep, digest(pixels), low, high, small, detail)


def hashes(packed: bytes) -> np.ndarray:
    """Hashes for `pictures.candidates`, uint64 [n]."""
    signature = unpack(packed)
    small = signature.thumbnail.astype(np.float32)
    return pictures.hash_image((_stretched(small, small.min(), small.max()) if signature.deep else small).mean(axis=2))


def similarity(a: bytes, b: bytes) -> float:
    """Computes the similarity of two packed signatures.

    Drawings are compared in detail. For other images, a crop counts as similar to the whole, unless one is tiny.
    """
    one, other = unpack(a), unpack(b)
    if one.digest == other.digest:
        return 1.0
    if one.deep != other.deep:
        return 0.0
    # Scale deep greyscale by the joint range of both images, so that differences in brightness count.
    low, high = (min(one.low, other.low), max(one.high, other.high)) if one.deep else (0.0, 255.0)
    small = [_stretched(signature.thumbnail.astype(np.float32), low, high) for signature in (one, other)]
    if not len(one.detail) and not len(other.detail):
        # In tiny images one pixel is already a 10 % crop, so different images (digits) match as crops of each other.
        tiny = min(one.side, other.side) < _TINY
        return (pictures.overlay_similarity if tiny else pictures.crop_similarity)(*small)
    if len(one.detail) == 0 or len(other.detail) == 0:
        return 0.0
    details = [
        _stretched(signature.low + signature.detail * ((signature.high - signature.low) / 255), low, high)
        for signature in (one, other)
    ]
    return min(drawings.detail_similarity(*details), pictures.overlay_similarity(*small))


def _stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Maps low to 0 and high to 255, float32."""
    return np.asarray((values - low) * (255 / max(high - low, 1e-30)), np.float32)
