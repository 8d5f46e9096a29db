"""Writes records as TFDS reads them: tf.train.Example in ArrayRecord files, the same bytes each time.

ArrayRecord itself writes the same bytes for the same records and options, whatever its threads do. Protocol buffers do
not: a tf.train.Example is a map, whose order differs from process to process unless one asks for a fixed one. TFDS does
not ask, so that its files differ though their records are equal; this file does.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.errors import UserError
from mmjax.prepare.job import Job
from mmjax.prepare.kinds import KINDS, Unreadable

RESERVED = ("key", "present")
# One record a group, for quick access to any of them: what Grain asks for. Pictures and sounds hardly become smaller;
# Snappy reads them in a third of the time of the default and still halves tables.
_OPTIONS = "group_size:1,snappy"


def features(tfds: Any, columns: Mapping[str, str], summary: Mapping[str, Any]) -> Any:
    """What TFDS is to store of an example; `columns` is {name: kind}, and `tfds` the module."""
    stored = {name: KINDS[kind]().tfds_feature(tfds, summary[name]) for name, kind in columns.items()}
    present = tfds.features.FeaturesDict({name: tfds.features.Scalar(dtype=np.bool_) for name in columns})
    return tfds.features.FeaturesDict({"key": tfds.features.Text(), "present": present, **stored})


def cut(sizes: np.ndarray, target: float) -> list[int]:
    """Where shards end, as numbers of rows, so that each has about `target` bytes of the `sizes` [rows]."""
    ends: list[int] = []
    filled = 0.0
    for number, size in enumerate(sizes):
        if filled and filled + size > target:
            ends.append(number)
            filled = 0.0
        filled += float(size)
    return [*ends, len(sizes)]


def file_name(dataset: str, split: str, shard: int, shards: int) -> str:
    """As TFDS names it."""
    return f"{dataset}-{split}.array_record-{shard:05}-of-{shards:05}"


def write_shard(job: Job, name: str, rows: np.ndarray) -> None:
    """Writes the records of some rows to `work/shards/NAME`, unless it is there, and what it holds to NAME.json."""
    from array_record.python import array_record_module

    path = job.work / "shards" / name
    note = path.with_name(f"{name}.json")
    if path.exists() and note.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{name}.{os.getpid()}")
    columns, summary, encode = _writing(job.work)
    writer = array_record_module.ArrayRecordWriter(str(temporary), _OPTIONS)
    digest = hashlib.sha256()
    try:
        for number in rows:
            record = encode(_example(job, int(number), summary))
            digest.update(len(record).to_bytes(8, "little") + record)
            writer.write(record)
    finally:
        writer.close()
    facts = {
        "examples": len(rows),
        "bytes": temporary.stat().st_size,
        "sha256": _file_sha256(temporary),
        "records_sha256": digest.hexdigest(),
    }
    os.replace(temporary, path)
    temporary.write_text(json.dumps(facts))
    os.replace(temporary, note)


def _example(job: Job, number: int, summary: Mapping[str, Any]) -> dict[str, Any]:
    row = job.row(number)
    key = row.key if not job.layout.key else str(row.values[job.layout.key])
    example: dict[str, Any] = {"key": key, "present": {}}
    for column in job.layout.columns:
        kind = job.kinds[column.name]
        try:
            raw = job.decode(row, column)
        except Unreadable as error:
            if not column.target and "unreadable" not in job.config.keep:
                problem = f"the {column.name} of {key!r} could be read before, and now cannot: {error}"
                raise UserError("--source", problem, "leave the source as it is while it is prepared") from None
            raw = None
        example["present"][column.name] = raw is not None
        value = kind.placeholder(summary[column.name]) if raw is None else kind.stored(raw, summary[column.name])
        example[column.name] = value
    return example


@functools.lru_cache(maxsize=2)
def _writing(work: pathlib.Path) -> tuple[dict[str, str], dict[str, Any], Any]:
    """({column: kind}, summary, what makes an example into bytes)."""
    # TFDS takes seconds to import; each process does so once.
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import example_serializer

    plan = json.loads((work / "summary.json").read_text())
    described = features(tfds, plan["columns"], plan["summary"])
    serializer = example_serializer.ExampleSerializer(described.get_serialized_info())

    def encode(example: dict[str, Any]) -> bytes:
        record = serializer.get_tf_example(described.encode_example(example))
        return record.SerializeToString(deterministic=True)

    return plan["columns"], plan["summary"], encode


def _file_sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
