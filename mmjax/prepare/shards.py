"""Writes TFDS-readable shards, tf.train.Example in ArrayRecord files, with reproducible bytes.

ArrayRecord writes equal bytes for equal records and options, regardless of threads. Protocol buffers do not: a
tf.train.Example is a map, whose order differs between processes unless serialized deterministically. This module
requests deterministic serialization; TFDS does not, so its files can differ for equal examples.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mmjax.errors import UserError
from mmjax.prepare.job import Job
from mmjax.prepare.kinds import KINDS, Unreadable

RESERVED = ("key", "present")
"""Names of record fields, which columns must not use."""

# One record per group, for the random access that Grain needs. Images and audio hardly compress: with Snappy, reading
# them takes a third of the time of the default codec, and tables still shrink by half.
_OPTIONS = "group_size:1,snappy"


def tfds_features(tfds: Any, columns: Mapping[str, str], summary: Mapping[str, Any]) -> Any:
    """Builds the TFDS features of an example.

    Args:
      tfds: module `tensorflow_datasets`.
      columns: {column: kind}.
      summary: {column: result of `Kind.summarise`}.
    """
    stored = {name: KINDS[kind]().tfds_feature(tfds, summary[name]) for name, kind in columns.items()}
    present = tfds.features.FeaturesDict({name: tfds.features.Scalar(dtype=np.bool_) for name in columns})
    return tfds.features.FeaturesDict({"key": tfds.features.Text(), "present": present, **stored})


def shard_ends(sizes: np.ndarray, target: float) -> list[int]:
    """Returns the end index of each shard, so that a shard holds at most `target` bytes or a single record.

    Args:
      sizes: bytes of each record [rows].
      target: maximum bytes per shard.
    """
    ends: list[int] = []
    shard_size = 0.0
    for index, size in enumerate(sizes):
        if shard_size and shard_size + size > target:
            ends.append(index)
            shard_size = 0.0
        shard_size += float(size)
    return [*ends, len(sizes)]


def file_name(dataset: str, split: str, shard: int, num_shards: int) -> str:
    """Returns the TFDS name of a shard file."""
    return f"{dataset}-{split}.array_record-{shard:05}-of-{num_shards:05}"


def write_shard(job: Job, name: str, rows: np.ndarray) -> None:
    """Writes rows to the shard `work/shards/NAME`, and its size and hashes to NAME.json. No-op if both files exist.

    Args:
      job: the preparation.
      name: file name of the shard.
      rows: row indices.

    Raises:
      UserError: if an input that was readable before no longer is.
    """
    from array_record.python import array_record_module

    path = job.work / "shards" / name
    description_file = path.with_name(f"{name}.json")
    if path.exists() and description_file.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{name}.{os.getpid()}")
    summary, encode = _load_encoder(job.work)
    writer = array_record_module.ArrayRecordWriter(str(temporary), _OPTIONS)
    digest = hashlib.sha256()
    try:
        for row in rows:
            record = encode(_make_example(job, int(row), summary))
            digest.update(len(record).to_bytes(8, "little") + record)
            writer.write(record)
    finally:
        writer.close()
    description = {
        "examples": len(rows),
        "bytes": temporary.stat().st_size,
        "sha256": _file_sha256(temporary),
        "records_sha256": digest.hexdigest(),
    }
    os.replace(temporary, path)
    temporary.write_text(json.dumps(description))
    os.replace(temporary, description_file)


def _make_example(job: Job, index: int, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Makes the example of a row, with placeholders for absent values."""
    row = job.row(index)
    key = row.key
    example: dict[str, Any] = {"key": key, "present": {}}
    for column in job.layout.columns:
        kind = job.kinds[column.name]
        try:
            raw = job.decode(row, column)
        except Unreadable as error:
            if not column.target and "unreadable" not in job.config.keep:
                problem = f"{column.name} of {key!r} is no longer readable: {error}"
                raise UserError("--source", problem, "do not change the source during preparation") from None
            raw = None
        # Discard values with `lost_faults`, as `decide` does.
        if raw is not None and (lost := job.lost_faults(column.name)):
            raw = None if set(lost).intersection(kind.faults(kind.measure(raw))) else raw
        example["present"][column.name] = raw is not None
        value = kind.placeholder(summary[column.name]) if raw is None else kind.stored(raw, summary[column.name])
        example[column.name] = value
    return example


@functools.lru_cache(maxsize=2)
def _load_encoder(work: pathlib.Path) -> tuple[dict[str, Any], Callable[[dict[str, Any]], bytes]]:
    """Returns (summary of each column, function that serializes an example). Cached: importing TFDS takes seconds."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import example_serializer

    content = json.loads((work / "summary.json").read_text())
    features = tfds_features(tfds, content["columns"], content["summary"])
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())

    def encode(example: dict[str, Any]) -> bytes:
        record = serializer.get_tf_example(features.encode_example(example))
        return record.SerializeToString(deterministic=True)

    return content["summary"], encode


def _file_sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
