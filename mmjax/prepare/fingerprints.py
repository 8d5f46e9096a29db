"""Near-duplicate search for feature vectors by locality-sensitive hashing.

Each bit is the sign of a random projection, so vectors at a small angle differ in few bits (Charikar, Similarity
Estimation Techniques from Rounding Algorithms, 2002). Candidate pairs are found as for images, by
`pictures.candidates`.
"""

from __future__ import annotations

import functools

import numpy as np

from mmjax.prepare import pictures

_BITS, _LEVELS = 64, 16


def hash_vector(vector: np.ndarray) -> np.ndarray:
    """Hashes a vector [n] to uint64 [3]: 64 sign bits, then 16 projections of one byte each.

    `pictures.candidates` expects this layout.
    """
    planes = _planes(len(vector))
    norm = np.linalg.norm(vector)
    projections = planes @ (vector / norm if norm else vector)
    levels = np.clip(np.rint(128 + 64 * projections[_BITS:]), 0, 255).astype(np.uint8)
    return np.concatenate([np.packbits(projections[:_BITS] > 0), levels]).view(">u8").astype(np.uint64)


def candidates(hashes: np.ndarray) -> np.ndarray:
    """Finds candidate near duplicates among hashes uint64 [rows, 3]; returns row indices int64 [pairs, 2]."""
    return pictures.candidates(hashes)


@functools.lru_cache(maxsize=16)
def _planes(size: int) -> np.ndarray:
    """Returns fixed random projections, float64 [_BITS + _LEVELS, size]."""
    return np.random.Generator(np.random.Philox(key=[0, size])).standard_normal((_BITS + _LEVELS, size))
