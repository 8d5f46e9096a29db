"""Comparison of drawings: icons, shapes, diagrams, and scans of text, on a flat background.

Different drawings may differ only in a small detail, such as a moved shape or one digit of a form. Drawings are
therefore compared at a higher resolution than photographs; crops do not count as duplicates, since cropping moves the
shapes; and differences are relative to the variance of each block instead of the whole image.
"""

from __future__ import annotations

import numpy as np
import PIL.Image

SIDE = 192
"""Largest side in pixels of a compared drawing."""

# A background is flat if at least a fraction `_FLAT` of the pixels is within `_LEVELS` of the most common grey level.
_LEVELS = 8
_FLAT = 0.5
# Blocks per side of a thumbnail, and the standard deviation in grey levels below which a block is flat.
_THUMBNAIL_BLOCKS = 6
_FLAT_STD = 4.0
# Side of a compared block in pixels, and RMS error per block, in grey levels, tolerated for encoding and scaling.
_BLOCK = 8
_NOISE = 6.0


def is_drawing(grey: np.ndarray) -> bool:
    """Returns True if at least half of an image is one flat or slowly varying background.

    Args:
      grey: uint8 [H, W].
    """
    counts = np.asarray(PIL.Image.fromarray(grey).histogram())
    common = int(counts.argmax())
    if counts[max(0, common - _LEVELS) : common + _LEVELS + 1].sum() >= _FLAT * grey.size:
        return True
    side = 8 * _THUMBNAIL_BLOCKS
    small = np.asarray(PIL.Image.fromarray(grey).resize((side, side), PIL.Image.Resampling.BOX), np.float32)
    blocks = small.reshape(_THUMBNAIL_BLOCKS, 8, _THUMBNAIL_BLOCKS, 8).std(axis=(1, 3))
    return bool((blocks < _FLAT_STD).mean() >= _FLAT)


def detail(grey: np.ndarray) -> np.ndarray:
    """Resizes an image uint8 [H, W] to a square uint8 [n, n], where n is the shorter side, but at most SIDE."""
    side = min(SIDE, *grey.shape)
    return np.asarray(PIL.Image.fromarray(grey).resize((side, side), PIL.Image.Resampling.BICUBIC))


def detail_similarity(one: np.ndarray, other: np.ndarray) -> float:
    """Computes the fraction of variance that the other image explains, minimum over blocks.

    Args:
      one, other: float32 [n, n] in [0, 255], results of `detail`; the larger is scaled to the smaller.

    Returns:
      The similarity, at most 1. Equal images give 1.
    """
    side = min(len(one), len(other))
    first, second = (_scaled(image, side) for image in (one, other))
    starts = np.arange(0, side, _BLOCK)
    # Blocks overlap by half, so that no small difference is split between two blocks.
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
