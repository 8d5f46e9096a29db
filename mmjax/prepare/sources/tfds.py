"""TFDS datasets, by name or folder. Reading ArrayRecord files needs no TensorFlow."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mmjax.errors import UserError
from mmjax.prepare import files
from mmjax.prepare.kinds import Kind
from mmjax.prepare.sources.base import Row, Source

_PREFIX = "tfds:"
_DESCRIPTION = "dataset_info.json"


class Tfds(Source):
    """A TFDS dataset with its own splits: `tfds:NAME` for `tfds.builder`, or a folder with `dataset_info.json`."""

    def __init__(self, uri: str):
        self.uri = uri
        self._data_sources: dict[str, Any] = {}
        self._cached: tuple[tuple[str, int], Mapping[str, Any]] | None = None

    @staticmethod
    def accepts(uri: str) -> bool:
        return uri.startswith(_PREFIX) or files.is_folder(uri) and files.exists(files.join(uri, _DESCRIPTION))

    @functools.cached_property
    def _builder(self) -> Any:
        try:
            import tensorflow_datasets as tfds

            if self.uri.startswith(_PREFIX):
                return tfds.builder(self.uri.removeprefix(_PREFIX), file_format="array_record")
            return tfds.builder_from_directory(self.uri)
        # TFDS raises many types of errors for invalid names and folders.
        except Exception as error:
            problem = f"TFDS cannot open {self.uri!r}: {str(error).splitlines()[0] if str(error) else error!r}"
            raise UserError("--source", problem, "give tfds:NAME or a folder written by TFDS") from None

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri, "_data_sources": {}, "_cached": None}

    @property
    def kinds(self) -> Mapping[str, str]:
        """Kinds of the single-valued features. Other features are ignored."""
        names = {"Image": "image", "Text": "text", "ClassLabel": "label", "Scalar": "number", "Audio": "audio"}
        features = dict(self._builder.info.features)
        return {name: kind for name, feature in features.items() if (kind := names.get(type(feature).__name__))}

    @property
    def left_out(self) -> Mapping[str, str]:
        kinds = self.kinds
        features = dict(self._builder.info.features)
        return {
            name: f"a TFDS feature {type(feature).__name__}, not a single value"
            for name, feature in features.items()
            if name not in kinds
        }

    def rows(self, work: pathlib.Path) -> Iterator[Row]:
        kinds = self.kinds
        for split, info in self._builder.info.splits.items():
            for index in range(info.num_examples):
                values = {name: {"record": [split, index, name]} for name in kinds}
                yield Row(f"{split}-{index:08}", {**values, "split": split})

    def load(self, value: Any, kind: Kind) -> Any:
        if not isinstance(value, dict):
            return value
        split, index, name = value["record"]
        feature, element = self._builder.info.features[name], self._record(split, index)[name]
        if type(feature).__name__ == "ClassLabel":
            return feature.int2str(int(element)) if element >= 0 else None
        if type(feature).__name__ == "Audio":
            samples = np.asarray(element)
            # TFDS returns int64 for every sample width.
            return (samples.astype(np.int16) if samples.dtype.kind == "i" else samples, feature.sample_rate or 16000)
        return element.item() if isinstance(element, np.generic) else element

    def _record(self, split: str, index: int) -> Mapping[str, Any]:
        # Cache the last record: the columns of a row are loaded one after the other.
        if self._cached is None or self._cached[0] != (split, index):
            if split not in self._data_sources:
                self._data_sources[split] = self._builder.as_data_source(split)
            self._cached = ((split, index), self._data_sources[split][index])
        return self._cached[1]
