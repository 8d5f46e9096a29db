"""A folder that `mmjax prepare` made, as a dataset to train on."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.data.dataset import Record, check_split
from mmjax.datasets.records import Records
from mmjax.errors import UserError
from mmjax.prepare.splits import sort_splits
from mmjax.tokens import TargetSpec

VERSION = 1
"""Of the form of `manifest.json`."""


class Prepared:
    """What `mmjax prepare` made of files of the user's; its columns are the inputs and targets."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Where the data is.

        Attributes:
          path: the folder, `--output` of `mmjax prepare`.
        """

        path: str

    def __init__(self, config: Config):
        self._folder = pathlib.Path(config.path).expanduser().absolute()
        self.manifest = read_manifest(self._folder)
        self._columns: dict[str, dict[str, np.ndarray]] = {}

    @property
    def splits(self) -> tuple[str, ...]:
        return sort_splits(self.manifest["splits"])

    @property
    def inputs(self) -> Mapping[str, str]:
        return self.manifest["inputs"]

    @property
    def dataset_options(self) -> Mapping[str, Mapping[str, Any]]:
        """{input: options of its modality that follow from the training split}."""
        return self.manifest.get("facts", {})

    @property
    def targets(self) -> Mapping[str, TargetSpec]:
        return {
            name: TargetSpec((), "int32", tuple(target["classes"]))
            if "classes" in target
            else TargetSpec((), "float32", mean=target.get("mean", 0.0), std=target.get("deviation", 1.0))
            for name, target in self.manifest["targets"].items()
        }

    @property
    def checksum(self) -> str:
        """sha256 of all records."""
        return self.manifest["checksum"]

    def prepare(self) -> pathlib.Path:
        """Returns the folder, in which everything is."""
        return self._folder

    def source(self, split: str) -> PreparedSource:
        check_split(split, self.splits)
        return PreparedSource(self._folder, split, self.inputs, tuple(self.targets))

    def columns(self, split: str) -> Mapping[str, np.ndarray]:
        """All columns of the index: see `mmjax.prepare.statistics.index_columns`."""
        check_split(split, self.splits)
        if split not in self._columns:
            self._columns[split] = self._read_columns(split)
        return self._columns[split]

    def _read_columns(self, split: str) -> dict[str, np.ndarray]:
        try:
            import pyarrow.parquet
        except ImportError:
            raise UserError("data", "reading an index needs pyarrow", "pip install 'mmjax[data]'") from None
        table = pyarrow.parquet.read_table(self._folder / "index" / f"{split}.parquet")
        return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}

    def ceilings(self, split: str) -> dict[str, dict[str, float]]:
        """Nobody knows."""
        return {}


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """What `manifest.json` of a prepared folder holds.

    Raises:
      UserError: if there is none, or one of another version.
    """
    path, remedy = folder / "manifest.json", "prepare it: mmjax prepare --source=PLACE --output=FOLDER"
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        problem = f"{str(folder)!r} is not finished" if folder.with_name(folder.name + ".partial").exists() else ""
        raise UserError("data.path", problem or f"{str(folder)!r} holds no prepared data", remedy) from None
    except (OSError, ValueError) as error:
        raise UserError("data.path", f"{str(path)!r} cannot be read: {error}", remedy) from None
    if not isinstance(manifest, dict) or manifest.get("version") != VERSION:
        raise UserError("data.path", f"{str(path)!r} is not of version {VERSION}", "prepare it anew")
    return manifest


def read_statistics(folder: pathlib.Path) -> dict[str, Any]:
    """What `statistics.json` of a prepared folder holds."""
    return json.loads((folder / "statistics.json").read_text())


class PreparedSource:
    """The records of one split.

    Args:
      folder: what `mmjax prepare` made.
      inputs: {name: kind}.
      targets: names.
    """

    def __init__(self, folder: pathlib.Path, split: str, inputs: Mapping[str, str], targets: tuple[str, ...]):
        self._folder, self._split, self._inputs, self._targets = folder, split, dict(inputs), targets

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes open the files themselves.
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_opened")}

    def __len__(self) -> int:
        return len(self._opened[0])

    def __getitem__(self, index: int) -> Record:
        return self._record(self.stored(index))

    def _record(self, stored: Mapping[str, Any]) -> Record:
        kinds = self._opened[1]
        present = stored["present"]
        inputs = {name: kinds[name].restore(stored[name]) if present[name] else None for name in self._inputs}
        return Record(inputs, {name: stored[name] if present[name] else None for name in self._targets})

    def stored(self, index: int) -> dict[str, Any]:
        """Everything that is stored of a record: its key, and what is present, too."""
        return self._opened[0][index]

    @functools.cached_property
    def _opened(self) -> tuple[Any, dict[str, Any]]:
        """(records, {input: its kind})."""
        # The decoders take long to import.
        from mmjax.prepare.kinds import KINDS

        return Records(self._folder, self._split), {name: KINDS[kind]() for name, kind in self._inputs.items()}
