"""Compares the signatures of pairs of rows, in resumable parts."""

from __future__ import annotations

import hashlib
import pathlib
import shutil

import numpy as np

from mmjax.prepare.examine import read_signature, write_arrays
from mmjax.prepare.job import Job

_PART = 512
"""Pairs per part."""


def write_pairs(work: pathlib.Path, name: str, round_index: int, pairs: np.ndarray) -> int:
    """Writes the pairs of rows to compare. Keeps earlier scores if the pairs are unchanged.

    Args:
      work: folder of unfinished work.
      name: column to compare.
      round_index: index of the comparison, since a column may be compared several times.
      pairs: int64 [n, 2], row indices.

    Returns:
      The number of parts.
    """
    folder, digest = _folder(work, name, round_index), hashlib.sha256(pairs.tobytes()).hexdigest()
    digest_file = folder / "pairs.sha256"
    if not digest_file.exists() or digest_file.read_text() != digest:
        shutil.rmtree(folder, ignore_errors=True)
        write_arrays(folder / "pairs.npz", {"pairs": pairs})
        digest_file.write_text(digest)
    return -(-len(pairs) // _PART)


def compare_pairs(job: Job, name: str, round_index: int, part: int) -> None:
    """Writes the similarity scores of one part of the pairs. No-op if they exist."""
    folder = _folder(job.work, name, round_index)
    path = folder / f"{part:07}.npz"
    if path.exists():
        return
    with np.load(folder / "pairs.npz") as arrays:
        pairs = arrays["pairs"][part * _PART : (part + 1) * _PART]
    kind = job.kinds[name]
    scores = [kind.similarity(*(read_signature(job.work, name, int(row)) for row in pair)) for pair in pairs]
    write_arrays(path, {"scores": np.asarray(scores)})


def read_scores(work: pathlib.Path, name: str, round_index: int, num_parts: int) -> np.ndarray:
    """Reads the similarity scores of all pairs, float64 [n]."""
    scores = [np.zeros(0)]
    for part in range(num_parts):
        with np.load(_folder(work, name, round_index) / f"{part:07}.npz") as arrays:
            scores.append(arrays["scores"])
    return np.concatenate(scores)


def _folder(work: pathlib.Path, name: str, round_index: int) -> pathlib.Path:
    return work / "compared" / str(round_index) / name
