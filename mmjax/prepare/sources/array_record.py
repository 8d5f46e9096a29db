"""ArrayRecord files of tf.train.Example records, without TFDS metadata."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator
from typing import Any

from mmjax.errors import UserError
from mmjax.prepare import files
from mmjax.prepare.kinds import File, Kind
from mmjax.prepare.sources.base import Row, Source

_NAME = re.compile(r".*\.(array_record|arrayrecord)(-\d+-of-\d+)?", re.IGNORECASE)
# File suffix by magic bytes of a value.
_MAGIC = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"fLaC": ".flac", b"OggS": ".ogg", b"ID3": ".mp3"}


class ArrayRecords(Source):
    """A local ArrayRecord file, or a folder of them. Scalars and UTF-8 strings are values, other bytes are files."""

    def __init__(self, uri: str):
        self.uri = uri
        self._readers: dict[str, Any] = {}

    @staticmethod
    def accepts(uri: str) -> bool:
        return bool(_files(uri))

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri, "_readers": {}}

    def rows(self, work: pathlib.Path) -> Iterator[Row]:
        for file in _files(self.uri):
            for index in range(self._reader(file).num_records()):
                record = self._record(file, index)
                values = {name: _value_or_reference(value, file, index, name) for name, value in record.items()}
                yield Row(f"{pathlib.PurePath(file).name}-{index:08}", values)

    def load(self, value: Any, kind: Kind) -> Any:
        if not isinstance(value, dict):
            return value
        file, index = value["record"]
        return File(value["name"], self._record(file, index)[value["column"]])

    def _record(self, file: str, index: int) -> dict[str, Any]:
        """Reads a record as {feature: value}, keeping only features with exactly one value."""
        from tensorflow_datasets.proto import tf_example_pb2

        try:
            example = tf_example_pb2.Example.FromString(self._reader(file).read([index])[0])
        except Exception as error:
            problem = f"record {index} of {file!r} is not a tf.train.Example: {error}"
            raise UserError("--source", problem, "give tf.train.Example files or a TFDS folder") from None
        values = {}
        for name, feature in example.features.feature.items():
            kind = feature.WhichOneof("kind")
            elements = list(getattr(feature, kind).value) if kind else []
            if len(elements) == 1:
                values[name.replace("/", "_")] = elements[0]
        return dict(sorted(values.items()))

    def _reader(self, file: str) -> Any:
        from array_record.python import array_record_module

        if file not in self._readers:
            self._readers[file] = array_record_module.ArrayRecordReader(file)
        return self._readers[file]


def _files(uri: str) -> list[str]:
    if files.is_remote(uri):
        return []
    if files.is_folder(uri):
        return [files.join(uri, name) for name, _ in files.walk(uri) if "/" not in name and _NAME.fullmatch(name)]
    return [uri] if _NAME.fullmatch(uri) and files.exists(uri) else []


def _value_or_reference(value: Any, file: str, index: int, name: str) -> Any:
    """Returns numbers and UTF-8 strings as values, other bytes as a reference that `ArrayRecords.load` resolves."""
    if not isinstance(value, bytes):
        return value
    suffix = next((suffix for magic, suffix in _MAGIC.items() if value.startswith(magic)), "")
    if value[:4] == b"RIFF":
        suffix = ".webp" if value[8:12] == b"WEBP" else ".wav"
    if not suffix:
        try:
            return value.decode()
        except UnicodeDecodeError:
            pass
    return {"record": [file, index], "column": name, "name": f"{name}{suffix}"}
