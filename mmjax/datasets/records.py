"""Fast reader of TFDS records in ArrayRecord files, several times as fast as TFDS.

TFDS inspects the encoding of every field for every record; this reader inspects it once per dataset. It supports only
the features that mmjax's builders and `mmjax prepare` write.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mmjax.errors import UserError

_REMEDY = "restore it from a copy, or prepare the data again"

FieldReader = Callable[[Any], Any]
"""Maps {field name: tf.train.Feature} to the value of one feature."""


class Records:
    """Records of one split, each a dict with the structure of the dataset's features.

    Value types: Text is bytes, a sequence of Text a list of bytes, ClassLabel an int, Tensor a read-only NumPy array.
    Image is the encoded file; `restore` of its kind in `mmjax.prepare.kinds` decodes it.

    Args:
      folder: folder of the dataset.
      split: split name.

    Raises:
      UserError: if the description of the dataset is damaged, or a shard is missing.
      TypeError: if the dataset has an unsupported feature.
    """

    def __init__(self, folder: pathlib.Path, split: str):
        # Imported here because both packages take seconds to import.
        import tensorflow_datasets as tfds
        from array_record.python.array_record_data_source import ArrayRecordDataSource
        from tensorflow_datasets.proto import tf_example_pb2

        try:
            builder = tfds.builder_from_directory(str(folder))
            instructions = builder.info.splits[split].file_instructions
        # TFDS raises errors of many types on damaged files.
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            problem = f"the description of the dataset in {str(folder)!r} is damaged ({type(error).__name__}: {reason})"
            raise UserError("data", problem, _REMEDY) from None
        for instruction in instructions:
            if not pathlib.Path(instruction.filename).is_file():
                raise UserError("data", f"shard {str(instruction.filename)!r} of {split!r} does not exist", _REMEDY)
        self._stored = ArrayRecordDataSource(instructions)
        self._parse = tf_example_pb2.Example.FromString
        self._read = _field_reader(tfds, builder.info.features, "")

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._decoded(self._stored[index])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def _decoded(self, stored: bytes) -> dict[str, Any]:
        return self._read(self._parse(stored).features.feature)


def _field_reader(tfds: Any, feature: Any, name: str) -> FieldReader:
    """Returns a reader of a feature that is stored under the field name `name`, a prefix for nested features."""
    if isinstance(feature, tfds.features.FeaturesDict):
        prefix = f"{name}/" if name else ""
        readers = {key: _field_reader(tfds, child, prefix + key) for key, child in feature.items()}
        return lambda fields: {key: read(fields) for key, read in readers.items()}
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
    raise TypeError(f"{name!r} has the unsupported feature {feature}; use a Tensor with encoding='bytes'")
