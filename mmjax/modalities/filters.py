"""Linear filters as sparse matrices: image resizing and audio resampling.

In both, each output depends on few inputs, so the filter is a sparse matrix. It multiplies a dense matrix: each row is
an image line, or sample k of every audio block, so the inner loop runs over contiguous memory. Photographs take 0.6
times as long as with Pillow, audio a third as long as with SciPy. One thread sums in a fixed order, so results do not
depend on the number of cores or workers.
"""

from __future__ import annotations

import fractions
import functools
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import scipy.sparse

# Elements per strip of columns, sized to stay in cache; and the minimum strip width, since short rows are slow.
_STRIP, _MIN_STRIP_WIDTH = 2**17, 32

# Maximum numerator and denominator of the ratio of two sample rates. No common pair exceeds it.
_MAX_TERM = 50_000

# {kind: (filter support, weight function of the distance)}, in pixels of the coarser of the two images; as in Pillow.
_KINDS = {
    "box": (0.5, lambda x: ((x > -0.5) & (x <= 0.5)).astype(np.float64)),
    "bilinear": (1.0, lambda x: np.maximum(0, 1 - np.abs(x))),
    "bicubic": (2.0, lambda x: _cubic(np.abs(x))),
    "lanczos": (3.0, lambda x: np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)),
}


def resize(
    pixels: np.ndarray, size: tuple[int, int], kind: str, box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """Resizes an image, with antialiasing when it shrinks (except for "nearest").

    Equals Pillow's `resize` of a floating-point image: values are not rounded to integers. At ties, "nearest" picks the
    later pixel; Pillow picks either.

    Args:
      pixels: uint8 [H, W] or [H, W, channels].
      size: (height, width).
      kind: "nearest", "box", "bilinear", "bicubic" or "lanczos".
      box: source region (top, left, bottom, right) in pixels; the whole image by default.

    Returns:
      float32 [height, width] or [height, width, channels] in [0, 255].
    """
    top, left, bottom, right = box or (0.0, 0.0, *map(float, pixels.shape[:2]))
    rows, vertical = _resize_matrix(pixels.shape[0], top, bottom, size[0], kind)
    columns, horizontal = _resize_matrix(pixels.shape[1], left, right, size[1], kind)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    vertical_first, horizontal_first = (
        vertical.nnz * across + horizontal.nnz * down for across, down in ((width, size[0]), (size[1], height))
    )
    if vertical_first > 2 * horizontal_first:
        # Filter the horizontal axis first: cheaper for images that are much wider than high.
        return _transpose(resize(_transpose(pixels), size[::-1], kind, (left, top, right, bottom)))
    region = pixels[rows, columns]
    lines = np.empty((width, size[0], *region.shape[2:]), np.float32)
    strip_width = max(_MIN_STRIP_WIDTH, _STRIP * width // region.size)
    for start in range(0, width, strip_width):
        strip = slice(start, start + strip_width)
        lines[strip] = _transpose(_matmul(vertical, region[:, strip].astype(np.float32)))
    values = _transpose(_matmul(horizontal, lines))
    if kind in ("bicubic", "lanczos"):
        # Negative filter weights overshoot at edges.
        np.clip(values, 0, 255, out=values)
    return values


def _matmul(matrix: scipy.sparse.csr_array, values: np.ndarray) -> np.ndarray:
    """Multiplies [count, n] by [n, m] or [n, m, channels]."""
    return (matrix @ values.reshape(len(values), -1)).reshape(-1, *values.shape[1:])


def _transpose(values: np.ndarray) -> np.ndarray:
    """Swaps rows and columns. Moving each pixel as one void item is three times as fast as moving its elements."""
    pixel = np.dtype((np.void, values.itemsize * math.prod(values.shape[2:])))
    moved = np.ascontiguousarray(values.reshape(*values.shape[:2], -1).view(pixel)[..., 0].T)
    return moved[..., None].view(values.dtype).reshape(values.shape[1], values.shape[0], *values.shape[2:])


@functools.lru_cache(maxsize=512)
def _resize_matrix(length: int, low: float, high: float, count: int, kind: str) -> tuple[slice, scipy.sparse.csr_array]:
    """Builds the matrix that resizes the interval [low, high] of a line of `length` pixels to `count` pixels.

    Returns:
      (slice of the input pixels that contribute, matrix [count, pixels in the slice]).
    """
    scale = (high - low) / count
    centres = low + (np.arange(count) + 0.5) * scale
    if kind == "nearest":
        first = np.clip(np.floor(centres), 0, length - 1).astype(np.int64)
        if (low, high) == (0, length):
            # Integer arithmetic avoids rounding errors at ties.
            first = (2 * np.arange(count) + 1) * length // (2 * count)
        taps, weights = first[:, None], np.ones((count, 1))
    else:
        # When upsampling, the filter support is in input pixels.
        width = max(scale, 1.0)
        support, weight_at = _KINDS[kind]
        first = np.maximum(np.floor(centres - support * width + 0.5), 0).astype(np.int64)
        last = np.minimum(np.floor(centres + support * width + 0.5), length).astype(np.int64)
        taps = first[:, None] + np.arange((last - first).max())
        weights = np.where(taps < last[:, None], weight_at((taps + 0.5 - centres[:, None]) / width), 0)
        weights /= weights.sum(axis=1, keepdims=True)
    start, stop = int(first.min()), int(taps[weights != 0].max()) + 1
    return slice(start, stop), _csr_matrix(weights, taps - start, stop - start)


def _csr_matrix(weights: np.ndarray, columns: np.ndarray, width: int) -> scipy.sparse.csr_array:
    """Builds a sparse matrix [rows, width] with `weights` [rows, taps] at the column indices `columns` [rows, taps]."""
    # Import SciPy here: the import is slow, and data of the right size does not need it.
    import scipy.sparse

    nonzero = weights != 0
    starts = np.concatenate([[0], np.cumsum(nonzero.sum(axis=1))]).astype(np.int32)
    indices = columns[nonzero].astype(np.int32)
    return scipy.sparse.csr_array((weights[nonzero].astype(np.float32), indices, starts), (len(weights), width))


def _cubic(x: np.ndarray) -> np.ndarray:
    """Cubic convolution kernel, a = -0.5, at distances x >= 0.

    Keys, Cubic convolution interpolation for digital image processing (1981).
    """
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def resample(samples: np.ndarray, rate: int, target: int) -> np.ndarray:
    """Resamples float32 [n] at `rate` Hz to float32 [ceil(n * target / rate)] at `target` Hz with a polyphase filter.

    The filter is that of `scipy.signal.resample_poly`. Ratios of large integers are approximated to 1e-7 or better.
    """
    if rate == target or not len(samples):
        return samples
    ratio = _bounded_ratio(target, rate)
    padding, step, matrix = _polyphase_matrix(ratio.numerator, ratio.denominator)
    block_size, width = matrix.shape
    count = -(-len(samples) * target // rate)
    blocks = -(-count // block_size)
    padded = np.zeros((blocks - 1) * step + width, np.float32)
    source = samples[: len(padded) - padding]
    padded[padding : padding + len(source)] = source
    # Row k has sample k of every block.
    lines = np.lib.stride_tricks.sliding_window_view(padded, width)[::step].T
    return (matrix @ np.ascontiguousarray(lines)).T.reshape(-1)[:count]


def _bounded_ratio(target: int, rate: int) -> fractions.Fraction:
    """Returns target / rate, approximated if a term exceeds `_MAX_TERM`: the filter has 20 * max(terms) taps."""
    if target > rate:
        return 1 / _bounded_ratio(rate, target)
    return max(fractions.Fraction(target, rate).limit_denominator(_MAX_TERM), fractions.Fraction(1, _MAX_TERM))


@functools.lru_cache(maxsize=8)
def _polyphase_matrix(up: int, down: int) -> tuple[int, int, scipy.sparse.csr_array]:
    """Builds the matrix that resamples one block of input by the ratio up / down.

    Returns:
      (left padding in samples, input samples from one block to the next, matrix [outputs, inputs] of a block).
    """
    import scipy.signal

    factor = max(up, down)
    # Half-length of the filter, in samples at the common multiple of both rates.
    half_length = 10 * factor
    low_pass = up * scipy.signal.firwin(2 * half_length + 1, 1 / factor, window=("kaiser", 5.0))
    # Make each block several times as long as its overlap with the next, since overlaps are stored twice: short blocks
    # would need several times the memory of the audio. (At large `up`, overlaps are small compared with the result.)
    periods = -(-80 // up)
    padding = half_length // up
    positions = np.arange(up * periods)[:, None] * down
    first = -(-(positions - half_length) // up)
    taps = first + np.arange(2 * half_length // up + 1)
    distance = positions - taps * up
    filter_index = np.clip(distance + half_length, 0, 2 * half_length)
    weights = np.where(np.abs(distance) <= half_length, low_pass[filter_index], 0)
    return padding, down * periods, _csr_matrix(weights, taps + padding, int(taps.max()) + padding + 1)
