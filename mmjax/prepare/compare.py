"""Compares the sketches of pairs of rows, in parts of which each is done once."""

from __future__ import annotations

import hashlib
import pathlib
import shutil

import numpy as np

from mmjax.prepare.examine import read_signature, write_arrays
from mmjax.prepare.job import Job

_PART = 512


def write_pairs(work: pathlib.Path, name: str, turn: int, pairs: np.ndarray) -> int:
    """Notes which rows are to be compared, and returns the number of parts. What was compared already stays.

    Args:
      work: where unfinished things lie.
      name: of the column.
      turn: a column may be compared several times, and each has its number.
      pairs: int64 [n, 2].
    """
    folder, digest = _folder(work, name, turn), hashlib.sha256(pairs.tobytes()).hexdigest()
    noted = folder / "pairs.sha256"
    if not noted.exists() or noted.read_text() != digest:
        shutil.rmtree(folder, ignore_errors=True)
        write_arrays(folder / "pairs.npz", {"pairs": pairs})
        noted.write_text(digest)
    return -(-len(pairs) // _PART)


def compare_pairs(job: Job, name: str, turn: int, part: int) -> None:
    """Writes how alike the two rows of each pair of a part are, unless that is done."""
    folder = _folder(job.work, name, turn)
    path = folder / f"{part:07}.npz"
    if path.exists():
        return
    with np.load(folder / "pairs.npz") as arrays:
        pairs = arrays["pairs"][part * _PART : (part + 1) * _PART]
    kind = job.kinds[name]
    scores = [kind.similarity(*(read_signature(job.work, name, int(row)) for row in pair)) for pair in pairs]
    write_arrays(path, {"scores": np.asarray(scores)})


def read_scores(work: pathlib.Path, name: str, turn: int, parts: int) -> np.ndarray:
    """The scores of all pairs."""
    found = [np.zeros(0)]
    for part in range(parts):
        with np.load(_folder(work, name, turn) / f"{part:07}.npz") as arrays:
            found.append(arrays["scores"])
    return np.concatenate(found)


def _folder(work: pathlib.Path, name: str, turn: int) -> pathlib.Path:
    return work / "compared" / str(turn) / name
