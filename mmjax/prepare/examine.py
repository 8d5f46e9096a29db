"""Examines each row once: decodes it, measures it, and stores its signatures, hashes and features."""

from __future__ import annotations

import collections
import functools
import io
import json
import os
import pathlib
import zipfile
from typing import Any, NamedTuple

import numpy as np

from mmjax.modalities.names import canonical_name, printable
from mmjax.prepare.columns import Column
from mmjax.prepare.job import CHUNK, Job, unreadable_if_fails
from mmjax.prepare.kinds import Kind, Unreadable
from mmjax.prepare.sources import Row

# {array of a chunk file: name of the array with its row offsets}.
_OFFSETS = {"hashes": "which", "features": "featured"}


class ExaminedRow(NamedTuple):
    """Measurements of one row.

    Attributes:
      key: key of the row.
      measured: {column: result of `Kind.measure`, or {"unreadable": reason}, or None if the row lacks the column}.
      split, group: values of the split and group columns, None if missing.
    """

    key: str
    measured: dict[str, dict[str, Any] | None]
    split: str | None
    group: str | None


def chunk_path(work: pathlib.Path, chunk: int) -> pathlib.Path:
    """Returns the path of a chunk file, `work/examined/CHUNK.npz`."""
    return work / "examined" / f"{chunk:07}.npz"


def examine_chunk(job: Job, chunk: int) -> None:
    """Examines the rows of a chunk and writes its chunk file atomically. No-op if the file exists.

    Arrays in the file, where `NAME` is an input column:
      rows: list of `ExaminedRow` as JSON.
      NAME/which, NAME/hashes: row offsets within the chunk [n], and hashes uint64 or uint32 [n, ...].
      NAME/sketches, NAME/ends: concatenated signature bytes of these rows, and the end offset of each [n].
      NAME/featured, NAME/features: row offsets within the chunk [m], and features float16 [m, ...].
    """
    path = chunk_path(job.work, chunk)
    if path.exists():
        return
    rows: list[ExaminedRow] = []
    parts: dict[str, list[Any]] = collections.defaultdict(list)
    for offset, index in enumerate(range(chunk * CHUNK, min(job.num_rows, (chunk + 1) * CHUNK))):
        row = job.row(index)
        measured: dict[str, Any] = {}
        for column in job.layout.columns:
            try:
                values, found = examine_value(job, row, column)
            except Unreadable as error:
                values, found = {"unreadable": " ".join(printable(str(error)).split())[:300]}, {}
            measured[column.name] = values
            for part, value in found.items():
                parts[f"{column.name}/{part}"].append(value)
                if part in _OFFSETS:
                    parts[f"{column.name}/{_OFFSETS[part]}"].append(offset)
        split, group = (None if (value := row.values.get(name)) is None else canonical_name(value)
                        for name in (job.layout.split, job.layout.group))  # fmt: skip
        rows.append(ExaminedRow(row.key, measured, split, group))
    arrays = {name: _to_array(name, values) for name, values in parts.items()}
    arrays["rows"] = np.frombuffer(json.dumps(rows).encode(), np.uint8)
    write_arrays(path, arrays)


def examine_value(job: Job, row: Row, column: Column) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Returns the measurements of a value, None if the row lacks it, and its parts for the chunk file.

    Raises:
      Unreadable: if the value cannot be decoded or measured.
    """
    original = job.read(row, column)
    if original is None:
        return None, {}
    # Values that decode may still be degenerate in ways that a measure does not expect. One bad file is one finding.
    with unreadable_if_fails():
        kind = job.kinds[column.name]
        reduced = kind.reduced(original)
        measured = dict(kind.measure(reduced))
        if reduced is not original:
            measured |= kind.measure_whole(original)
        return measured, {} if column.target else _signature_and_features(kind, reduced)


def _signature_and_features(kind: Kind, raw: Any) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    signature = kind.signature(raw)
    hashes = None if signature is None else kind.hashes(signature)
    if signature is not None and hashes is not None:
        parts |= {"hashes": hashes, "sketches": signature, "ends": len(signature)}
    features = kind.features(raw)
    return parts if features is None else parts | {"features": features.astype(np.float16)}


def _to_array(name: str, values: list[Any]) -> np.ndarray:
    part = name.rpartition("/")[2]
    if part == "sketches":
        return np.frombuffer(b"".join(values), np.uint8)
    return np.cumsum(values) if part == "ends" else np.stack([np.asarray(value) for value in values])


def read_rows(work: pathlib.Path, chunk: int) -> list[ExaminedRow]:
    """Reads the measurements of a chunk, one entry per row."""
    with np.load(chunk_path(work, chunk)) as arrays:
        return [ExaminedRow(*row) for row in json.loads(arrays["rows"].tobytes())]


def read_part(work: pathlib.Path, num_chunks: int, name: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads the "hashes" or "features" of a column from all chunks.

    Returns:
      (row indices int64 [n], values [n, ...]) of the n rows that have them.
    """
    rows, values = [np.zeros(0, np.int64)], []
    for chunk in range(num_chunks):
        with np.load(chunk_path(work, chunk)) as arrays:
            if f"{name}/{part}" in arrays:
                rows.append(arrays[f"{name}/{_OFFSETS[part]}"] + chunk * CHUNK)
                values.append(arrays[f"{name}/{part}"])
    return np.concatenate(rows), np.concatenate(values) if values else np.zeros((0, 1))


def read_signature(work: pathlib.Path, name: str, row: int) -> bytes:
    """Reads the signature of a column in one row. The row must have one."""
    offsets, ends, signatures = _signatures(work, name, row // CHUNK)
    index = int(np.searchsorted(offsets, row % CHUNK))
    return signatures[(ends[index - 1] if index else 0) : ends[index]].tobytes()


@functools.lru_cache(maxsize=128)
def _signatures(work: pathlib.Path, name: str, chunk: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads (row offsets, end offsets, signature bytes) of a column in a chunk."""
    with np.load(chunk_path(work, chunk)) as arrays:
        return arrays[f"{name}/which"], arrays[f"{name}/ends"], arrays[f"{name}/sketches"]


def write_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes an .npz file atomically. Equal arrays give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with zipfile.ZipFile(temporary, "w") as archive:
        for name in sorted(arrays):
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.asarray(arrays[name]), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue())
    os.replace(temporary, path)
