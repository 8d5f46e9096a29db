"""Looks at every row once: decodes it, measures it, and keeps a small likeness of it for comparisons."""

from __future__ import annotations

import functools
import io
import json
import os
import pathlib
import zipfile
from typing import Any

import numpy as np

from mmjax.prepare.job import CHUNK, Job
from mmjax.prepare.kinds import Unreadable


def chunk_path(work: pathlib.Path, number: int) -> pathlib.Path:
    return work / "examined" / f"{number:07}.npz"


def examine_chunk(job: Job, number: int) -> None:
    """Examines the rows of a chunk, unless that is done, and writes what it found at once.

    The file has "rows", JSON: for each [key, {column: what `Kind.measure` found, {"unreadable": why} or None}, split,
    group], and for each column that has them "NAME/which", rows in the chunk; "NAME/hashes"; "NAME/features";
    "NAME/sketches", bytes one after the other; "NAME/ends", where each ends.
    """
    path = chunk_path(job.work, number)
    if path.exists():
        return
    rows: list[Any] = []
    parts: dict[str, list[Any]] = {}
    layout = job.layout
    for at, index in enumerate(range(number * CHUNK, min(job.rows, (number + 1) * CHUNK))):
        row = job.row(index)
        found: dict[str, Any] = {}
        for column in layout.columns:
            try:
                kind, whole = job.kinds[column.name], job.read(row, column)
                raw = None if whole is None else kind.reduced(whole)
                found[column.name] = None if raw is None else kind.measure(raw)
                if raw is not whole:
                    found[column.name] |= kind.measure_whole(whole)
            except Unreadable as error:
                found[column.name] = {"unreadable": " ".join(str(error).split())[:300]}
                continue
            if raw is not None and not column.target:
                _add(parts, column.name, at, kind, raw)
        split, group = (str(row.values[name]) if row.values.get(name) is not None else None if name else None
                        for name in (layout.split, layout.group))  # fmt: skip
        rows.append([row.key, found, split, group])
    arrays = {name: _array(name, values) for name, values in parts.items()}
    arrays["rows"] = np.frombuffer(json.dumps(rows).encode(), np.uint8)
    write_arrays(path, arrays)


def _add(parts: dict[str, list[Any]], name: str, at: int, kind: Any, raw: Any) -> None:
    signature = kind.signature(raw)
    hashes = None if signature is None else kind.hashes(signature)
    if hashes is not None:
        parts.setdefault(f"{name}/which", []).append(at)
        parts.setdefault(f"{name}/hashes", []).append(hashes)
        parts.setdefault(f"{name}/sketches", []).append(signature)
        parts.setdefault(f"{name}/ends", []).append(len(signature))
    features = kind.features(raw)
    if features is not None:
        parts.setdefault(f"{name}/featured", []).append(at)
        parts.setdefault(f"{name}/features", []).append(features.astype(np.float16))


def _array(name: str, values: list[Any]) -> np.ndarray:
    part = name.rpartition("/")[2]
    if part == "sketches":
        return np.frombuffer(b"".join(values), np.uint8)
    return np.cumsum(values) if part == "ends" else np.stack([np.asarray(value) for value in values])


def read_rows(work: pathlib.Path, number: int) -> list[Any]:
    """[key, {column: measured}, split, group] of each row of a chunk."""
    with np.load(chunk_path(work, number)) as arrays:
        return json.loads(arrays["rows"].tobytes())


def read_part(work: pathlib.Path, chunks: int, name: str, where: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    """(numbers of the rows that have it, the part of a column for each) of all chunks."""
    numbers, values = [np.zeros(0, np.int64)], []
    for number in range(chunks):
        with np.load(chunk_path(work, number)) as arrays:
            if f"{name}/{part}" in arrays:
                numbers.append(arrays[f"{name}/{where}"] + number * CHUNK)
                values.append(arrays[f"{name}/{part}"])
    return np.concatenate(numbers), np.concatenate(values) if values else np.zeros((0, 1))


def read_signature(work: pathlib.Path, name: str, row: int) -> bytes:
    """The sketch of a column of a row that has one."""
    which, ends, signatures = _signatures(work, name, row // CHUNK)
    at = int(np.searchsorted(which, row % CHUNK))
    return signatures[(ends[at - 1] if at else 0) : ends[at]].tobytes()


@functools.lru_cache(maxsize=128)
def _signatures(work: pathlib.Path, name: str, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with np.load(chunk_path(work, number)) as arrays:
        return arrays[f"{name}/which"], arrays[f"{name}/ends"], arrays[f"{name}/sketches"]


def write_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes an .npz that is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with zipfile.ZipFile(temporary, "w") as archive:
        for name in sorted(arrays):
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.asarray(arrays[name]), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue())
    os.replace(temporary, path)
