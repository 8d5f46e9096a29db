"""Pixel statistics and compositing of images of any size, in blocks of rows: temporary arrays take a few MiB."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from mmjax.modalities.image import blend_onto_white

_BLOCK = 1 << 18
"""Pixels per block."""


def to_rgb(pixels: np.ndarray) -> np.ndarray:
    """Converts to RGB uint8 [H, W, 3], compositing transparency over white.

    Args:
      pixels: uint8 [H, W] or [H, W, 1 to 4].
    """
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels in (1, 3):
        return np.broadcast_to(pixels.reshape(*pixels.shape[:2], channels), (*pixels.shape[:2], 3))
    return to_rgb(blend_onto_white(pixels))


def mean_and_std(pixels: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of all values of uint8 pixels, scaled to [0, 1]."""
    counts = np.zeros(256, np.int64)
    for block in _blocks(pixels):
        counts += np.bincount(block.reshape(-1), minlength=256)
    levels = np.arange(256) / 255
    mean = counts @ levels / counts.sum()
    return float(mean), float(np.sqrt(counts @ np.square(levels - mean) / counts.sum()))


def grey_quantiles(pixels: np.ndarray, fractions: Sequence[float]) -> np.ndarray:
    """Quantiles of the mean of R, G and B, composited over white, interpolated linearly; float64 [fractions]."""
    # Sums of three channels are integers, so their histogram is exact.
    counts = np.zeros(3 * 255 + 1, np.int64)
    for block in map(to_rgb, _blocks(pixels)):
        sums = block[..., 0].astype(np.intp) + block[..., 1] + block[..., 2]
        counts += np.bincount(sums.reshape(-1), minlength=len(counts))
    ends = np.cumsum(counts)
    position = np.asarray(fractions) * (ends[-1] - 1)
    lower, upper = (np.searchsorted(ends, rounded, side="right") for rounded in (np.floor(position), np.ceil(position)))
    return (lower + (upper - lower) * (position % 1)) / 3


def digest(pixels: np.ndarray) -> bytes:
    """Hash of the shape, dtype and values of an image, 16 bytes."""
    state = hashlib.blake2b(f"{pixels.dtype} {pixels.shape}".encode(), digest_size=16)
    for block in _blocks(pixels):
        state.update(block.tobytes())
    return state.digest()


def _blocks(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """Yields views of consecutive rows."""
    rows = max(1, _BLOCK // max(1, pixels.shape[1]))
    return (pixels[start : start + rows] for start in range(0, len(pixels), rows))
