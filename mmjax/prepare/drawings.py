"""Comparison of drawings: icons, shapes, diagrams, and scans of text, on a flat background.

A small difference makes another drawing: a shape that is elsewhere, one digit of a form. So drawings are compared at a
higher resolution than photographs, without crops, since a cropped drawing is a moved one, and each block is judged by
its own variance instead of that of the whole image.
"""

from __future__ import annotations

import numpy as np
import PIL.Image

SIDE = 192
"""Largest side in pixels of a compared drawing."""

# Share of pixels within this many grey levels of the most common one, from which a background is flat.
_LEVELS = 8
_FLAT = 0.5
# Blocks per side of a thumbnail, and the standard deviation in grey levels below which a block is flat.
_THUMBNAIL_BLOCKS = 6
_FLAT_STD = 4.0
# Side in pixels of a compared block, and error in grey levels that encoding and scaling may cause in it.
_BLOCK = 8
_NOISE = 6.0


def is_drawing(grey: np.ndarray) -> bool:
    """Returns True if at least half of an image is one flat or slowly varying background.

    Args:
      grey: uint8 [H, W].
    """
    counts = np.bincount(grey.reshape(-1), minlength=256)
    common = int(counts.argmax())
    if counts[max(0, common - _LEVELS) : common + _LEVELS + 1].sum() >= _FLAT * grey.size:
        return True
    side = 8 * _THUMBNAIL_BLOCKS
    small = np.asarray(PIL.Image.fromarray(grey).resize((side, side), PIL.Image.Resampling.BOX), np.float32)
    blocks = small.reshape(_THUMBNAIL_BLOCKS, 8, _THUMBNAIL_BLOCKS, 8).std(axis=(1, 3))
    return bool((blocks < _FLAT_STD).mean() >= _FLAT)


def detail(grey: np.ndarray) -> np.ndarray:
    """Scales an image uint8 [H, W] to a square of at most SIDE pixels, and of its own shorter side: uint8 [n, n]."""
    side = min(SIDE, *grey.shape)
    return np.asarray(PIL.Image.fromarray(grey).resize((side, side), PIL.Image.Resampling.BICUBIC))


def detail_similarity(one: np.ndarray, other: np.ndarray) -> float:
    """Computes the fraction of a block's variance that the other image explains, in the worst block.

    Args:
      one, other: float32 [n, n] in [0, 255], results of `detail`; the larger is scaled to the smaller.

    Returns:
      At most 1, for equal images.
    """
    side = min(len(one), len(other))
    first, second = (_scaled(image, side) for image in (one, other))
    starts = np.arange(0, side, _BLOCK)
    # Blocks overlap by half, so that no difference is split between two.
    worst = 1.0
    for shift in (0, _BLOCK // 2):
        at = np.minimum(starts + shift, max(0, side - _BLOCK))
        windows = [
            np.lib.stride_tricks.sliding_window_view(image, (min(_BLOCK, side),) * 2)[np.ix_(at, at)]
            for image in (first, second)
        ]
        error = np.square(windows[0] - windows[1]).mean(axis=(2, 3))
        variance = np.maximum(*(window.var(axis=(2, 3)) for window in windows))
        unexplained = np.maximum(0, error - _NOISE**2) / (variance + _NOISE**2)
        worst = min(worst, 1 - float(unexplained.max()))
    return worst


def _scaled(image: np.ndarray, side: int) -> np.ndarray:
    if len(image) != side:
        image = np.asarray(PIL.Image.fromarray(image).resize((side, side), PIL.Image.Resampling.BICUBIC))
    return image
