"""Near duplicates of whatever has a few numbers that tell it: hashes find them, and a comparison of the kind decides.

A bit says on which side of a plane, drawn at random, the numbers lie: vectors at a small angle differ in few bits
(Charikar, Similarity Estimation Techniques from Rounding Algorithms, 2002). The pairs are then found as for pictures.
"""

from __future__ import annotations

import functools

import numpy as np

from mmjax.prepare import pictures

_BITS, _LEVELS = 64, 16


def hashes(numbers: np.ndarray) -> np.ndarray:
    """uint64 [3] of a vector: 64 bits, and 16 projections as levels of a byte each, as `pictures.candidates` wants."""
    planes = _planes(len(numbers))
    length = np.linalg.norm(numbers)
    sides = planes @ (numbers / length if length else numbers)
    levels = np.clip(np.rint(128 + 64 * sides[_BITS:]), 0, 255).astype(np.uint8)
    return np.concatenate([np.packbits(sides[:_BITS] > 0), levels]).view(">u8").astype(np.uint64)


def candidates(hashes: np.ndarray) -> np.ndarray:
    """int64 [pairs, 2]: rows of uint64 [rows, 3] that may be alike."""
    return pictures.candidates(hashes)


@functools.lru_cache(maxsize=16)
def _planes(size: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[0, size])).standard_normal((_BITS + _LEVELS, size))
