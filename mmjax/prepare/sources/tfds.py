"""Datasets of TFDS, by name or by their folder; no TensorFlow is needed for those that lie in ArrayRecord files."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mmjax.errors import UserError
from mmjax.prepare import files
from mmjax.prepare.kinds import Kind
from mmjax.prepare.sources.base import Row

_PREFIX = "tfds:"
_DESCRIPTION = "dataset_info.json"


class Tfds:
    """`tfds:NAME` as `tfds.builder` takes it, or a folder with `dataset_info.json`. Its splits are the splits."""

    def __init__(self, uri: str):
        self.uri = uri
        self._opened: dict[str, Any] = {}
        self._last: tuple[tuple[str, int], Mapping[str, Any]] | None = None

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
        # TFDS raises errors of many kinds for names and folders that it cannot use.
        except Exception as error:
            problem = f"TFDS cannot open {self.uri!r}: {str(error).splitlines()[0] if str(error) else error!r}"
            raise UserError("--source", problem, "give tfds:NAME or a folder that TFDS wrote") from None

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.uri, "_opened": {}, "_last": None}

    @property
    def kinds(self) -> Mapping[str, str]:
        """Of the features that are one value; others are left out."""
        names = {"Image": "image", "Text": "text", "ClassLabel": "label", "Scalar": "number", "Audio": "audio"}
        features = dict(self._builder.info.features)
        return {name: kind for name, feature in features.items() if (kind := names.get(type(feature).__name__))}

    def rows(self, work: pathlib.Path) -> Iterator[Row]:
        known = self.kinds
        for split, info in self._builder.info.splits.items():
            for number in range(info.num_examples):
                values = {name: {"record": [split, number, name]} for name in known}
                yield Row(f"{split}-{number:08}", {**values, "split": split})

    def load(self, value: Any, kind: Kind) -> Any:
        if not isinstance(value, dict):
            return value
        split, number, name = value["record"]
        feature, found = self._builder.info.features[name], self._record(split, number)[name]
        if type(feature).__name__ == "ClassLabel":
            return feature.int2str(int(found)) if found >= 0 else None
        if type(feature).__name__ == "Audio":
            samples = np.asarray(found)
            # TFDS gives int64 whatever the width was.
            return (samples.astype(np.int16) if samples.dtype.kind == "i" else samples, feature.sample_rate or 16000)
        return found.item() if isinstance(found, np.generic) else found

    def _record(self, split: str, number: int) -> Mapping[str, Any]:
        # All columns of a row are asked for one after the other.
        if self._last is None or self._last[0] != (split, number):
            if split not in self._opened:
                self._opened[split] = self._builder.as_data_source(split)
            self._last = ((split, number), self._opened[split][number])
        return self._last[1]
