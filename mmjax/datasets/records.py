"""Reads the records that TFDS wrote to ArrayRecord files, several times as fast as TFDS does.

TFDS finds out anew for every field of every record how it was stored; here that is found out once. Known are the
features that our own builders and `mmjax prepare` store.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Read = Callable[[Any], Any]
"""Makes a value of {name of a stored field: tf.train.Feature}."""


class Records:
    """The records of one split, each a dict as the features say.

    A text is bytes, texts are a list of them, a class is its number, a tensor a NumPy array that cannot be written to.
    An image is the bytes of its file, since decoding is for whom `restore`s it.

    Args:
      folder: of the prepared dataset.
      split: one that it has.

    Raises:
      TypeError: if the dataset has a feature of another kind.
    """

    def __init__(self, folder: pathlib.Path, split: str):
        # Both take seconds to import.
        import tensorflow_datasets as tfds
        from array_record.python.array_record_data_source import ArrayRecordDataSource
        from tensorflow_datasets.proto import tf_example_pb2

        builder = tfds.builder_from_directory(str(folder))
        self._stored = ArrayRecordDataSource(builder.info.splits[split].file_instructions)
        self._parse = tf_example_pb2.Example.FromString
        self._read = _reads(tfds, builder.info.features, "")

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._decoded(self._stored[index])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def _decoded(self, stored: bytes) -> dict[str, Any]:
        return self._read(self._parse(stored).features.feature)


def _reads(tfds: Any, feature: Any, name: str) -> Read:
    """What makes the value of a feature whose fields' names begin with `name`."""
    if isinstance(feature, tfds.features.FeaturesDict):
        prefix = f"{name}/" if name else ""
        parts = {key: _reads(tfds, part, prefix + key) for key, part in feature.items()}
        return lambda fields: {key: read(fields) for key, read in parts.items()}
    if isinstance(feature, (tfds.features.Text, tfds.features.Image)):
        return lambda fields: fields[name].bytes_list.value[0]
    if isinstance(feature, tfds.features.Sequence) and isinstance(feature.feature, tfds.features.Text):
        return lambda fields: list(fields[name].bytes_list.value)
    if isinstance(feature, tfds.features.ClassLabel):
        return lambda fields: fields[name].int64_list.value[0]
    if isinstance(feature, tfds.features.Tensor):
        encoding, shape, dtype = feature.to_json_content().encoding, feature.shape, np.dtype(feature.np_dtype)
        if encoding == "bytes" and shape.count(None) > 1:
            shape_name, value_name = f"{name}/shape", f"{name}/value"

            def with_shape(fields):
                values = np.frombuffer(fields[value_name].bytes_list.value[0], dtype)
                return values.reshape(fields[shape_name].int64_list.value)

            return with_shape
        if encoding == "bytes":
            fixed = tuple(-1 if size is None else size for size in shape)
            return lambda fields: np.frombuffer(fields[name].bytes_list.value[0], dtype).reshape(fixed)
        if encoding == "none" and not shape and dtype.kind in "iu":
            return lambda fields: fields[name].int64_list.value[0]
        if encoding == "none" and not shape and dtype.kind == "b":
            return lambda fields: bool(fields[name].int64_list.value[0])
        if encoding == "none" and not shape and dtype.kind == "f":
            return lambda fields: fields[name].float_list.value[0]
    raise TypeError(f"{name!r} is stored as {feature}, which is not known here: write it as a tensor in bytes")
