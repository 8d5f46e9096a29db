"""ArrayRecord files that nobody describes: each record a tf.train.Example."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmjax.errors import UserError
from mmjax.prepare import files
from mmjax.prepare.kinds import File, Kind
from mmjax.prepare.sources.base import Row

_NAME = re.compile(r".*\.(array_record|arrayrecord)(-\d+-of-\d+)?", re.IGNORECASE)
# What the bytes of a value begin with, and the suffix of such files.
_MAGIC = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"fLaC": ".flac", b"OggS": ".ogg", b"ID3": ".mp3"}


class ArrayRecords:
    """A file, or a folder of them, on this machine. Single numbers and texts are values, other bytes files."""

    def __init__(self, uri: str):
        self.uri = uri
        self._readers: dict[str, Any] = {}

    @staticmethod
    def accepts(uri: str) -> bool:
        return bool(_files(uri))

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.uri, "_readers": {}}

    @property
    def kinds(self) -> Mapping[str, str]:
        return {}

    def rows(self, work: pathlib.Path) -> Iterator[Row]:
        for file in _files(self.uri):
            for number in range(self._reader(file).num_records()):
                values = {
                    name: _listed(value, file, number, name) for name, value in self._record(file, number).items()
                }
                yield Row(f"{pathlib.PurePath(file).name}-{number:08}", values)

    def load(self, value: Any, kind: Kind) -> Any:
        if not isinstance(value, dict):
            return value
        file, number = value["record"]
        return File(value["name"], self._record(file, number)[value["column"]])

    def _record(self, file: str, number: int) -> dict[str, Any]:
        from tensorflow_datasets.proto import tf_example_pb2

        try:
            example = tf_example_pb2.Example.FromString(self._reader(file).read([number])[0])
        except Exception as error:
            problem = f"record {number} of {file!r} is no tf.train.Example: {error}"
            raise UserError("--source", problem, "give files of tf.train.Example, or a folder of TFDS") from None
        values = {}
        for name, feature in example.features.feature.items():
            kind = feature.WhichOneof("kind")
            found = list(getattr(feature, kind).value) if kind else []
            if len(found) == 1:
                values[name.replace("/", "_")] = found[0]
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


def _listed(value: Any, file: str, number: int, name: str) -> Any:
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
    return {"record": [file, number], "column": name, "name": f"{name}{suffix}"}
