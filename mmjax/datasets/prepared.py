"""Dataset from a folder written by `mmjax prepare`."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np

from mmjax.config import FilePath
from mmjax.data.dataset import Dataset, Record, check_split
from mmjax.datasets.records import Records
from mmjax.errors import MissingData, UserError
from mmjax.files import read_json, user_path
from mmjax.modalities import MODALITIES
from mmjax.prepare.splits import sort_splits
from mmjax.tokens import TargetSpec

VERSION = 1
"""Format version of `manifest.json`."""

_RESTORE = "restore it from a copy, or prepare the data again"


class Prepared(Dataset):
    """User data converted by `mmjax prepare`. Its columns are the inputs and targets."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `Prepared`.

        Attributes:
          path: folder of the prepared data, `--output` of `mmjax prepare`.
        """

        path: Annotated[str, FilePath()]

    def __init__(self, config: Config):
        self._folder = user_path(config.path).absolute()
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
        """{input: modality options computed from the training split}."""
        return self.manifest.get("facts", {})

    @property
    def reductions(self) -> Mapping[str, Mapping[str, Any]]:
        """{input: "options" and "summary" of `mmjax.prepare.reduction.Reduction`}, of inputs stored smaller."""
        return self.manifest.get("reduced", {})

    @property
    def targets(self) -> Mapping[str, TargetSpec]:
        return {
            name: TargetSpec((len(target["classes"]),), "uint8", tuple(target["classes"]))
            if target["kind"] == "labels"
            else TargetSpec((), "int32", tuple(target["classes"]))
            if "classes" in target
            else TargetSpec((), "float32", mean=target.get("mean", 0.0), std=target.get("deviation", 1.0))
            for name, target in self.manifest["targets"].items()
        }

    @property
    def checksum(self) -> str:
        """SHA-256 of all records."""
        return self.manifest["checksum"]

    def prepare(self) -> pathlib.Path:
        """Returns the folder; the data is already prepared."""
        return self._folder

    def source(self, split: str) -> PreparedSource:
        check_split(split, self.splits)
        for shard in self.manifest["shards"][split]:
            path = self._folder / shard["file"]
            size = path.stat().st_size if path.is_file() else None
            if size != shard["bytes"]:
                found = "does not exist" if size is None else f"has {size:,} bytes instead of {shard['bytes']:,}"
                raise UserError("data.path", f"shard {str(path)!r} of {split!r} {found}", _RESTORE)
        return PreparedSource(self._folder, split, self.inputs, tuple(self.targets))

    def columns(self, split: str) -> Mapping[str, np.ndarray]:
        """Returns all index columns; see `mmjax.prepare.statistics.index_columns`."""
        check_split(split, self.splits)
        if split not in self._columns:
            self._columns[split] = self._read_columns(split)
        return self._columns[split]

    def _read_columns(self, split: str) -> dict[str, np.ndarray]:
        try:
            import pyarrow.parquet
        except ImportError:
            raise UserError("data", "reading an index requires pyarrow", "pip install 'mmjax[data]'") from None
        path = self._folder / "index" / f"{split}.parquet"
        try:
            table = pyarrow.parquet.read_table(path)
            return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
        # pyarrow raises errors of many types on damaged files.
        except Exception as error:
            problem = f"{str(path)!r} cannot be read ({type(error).__name__}: {error})"
            raise UserError("data.path", problem, _RESTORE) from None


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """Reads `manifest.json` of a prepared folder.

    Raises:
      UserError: if the file is missing, unreadable or has another format version.
    """
    path, remedy = folder / "manifest.json", "run mmjax prepare --source=PATH --output=FOLDER"
    try:
        manifest = read_json(path)
    except FileNotFoundError:
        partial = folder.with_name(folder.name + ".partial").exists()
        problem = "is only partially prepared" if partial else "is not a prepared dataset"
        raise MissingData("data.path", f"{str(folder)!r} {problem}", remedy) from None
    except (OSError, ValueError) as error:
        raise UserError("data.path", f"{str(path)!r} cannot be read: {error}", remedy) from None
    if not isinstance(manifest, dict) or manifest.get("version") != VERSION:
        raise UserError("data.path", f"{str(path)!r} does not have format version {VERSION}", "prepare the data again")
    if problem := _find_problem(manifest):
        raise UserError("data.path", f"{str(path)!r} is damaged: {problem}", _RESTORE)
    return manifest


def _find_problem(manifest: Mapping[str, Any]) -> str:
    """Returns what is wrong with the structure of a manifest, "" if nothing."""
    for name, kind in {"inputs": dict, "targets": dict, "splits": dict, "shards": dict, "checksum": str}.items():
        if not isinstance(manifest.get(name), kind):
            return f"{name!r} is not a {kind.__name__}"
    if not isinstance(manifest.get("facts", {}), dict) or not all(
        isinstance(options, dict) for options in manifest.get("facts", {}).values()
    ):
        return "'facts' is not a dict of dicts"
    for name, target in manifest["targets"].items():
        if not isinstance(target, dict) or target.get("kind") not in ("label", "labels", "number"):
            return f"the target {name!r} has no kind"
        classes = target.get("classes")
        if (target["kind"] != "number") != (isinstance(classes, list) and all(isinstance(c, str) for c in classes)):
            return f"the target {name!r} has no class names"
        if not all(isinstance(target.get(key, 0.0), (int, float)) for key in ("mean", "deviation")):
            return f"the target {name!r} has statistics that are not numbers"
    if unknown := [kind for kind in manifest["inputs"].values() if kind not in MODALITIES]:
        return f"unknown kind of input {unknown[0]!r}"
    for split in manifest["splits"]:
        shards = manifest["shards"].get(split)
        if not isinstance(shards, list) or not all(
            isinstance(shard, dict) and isinstance(shard.get("file"), str) and isinstance(shard.get("bytes"), int)
            for shard in shards
        ):
            return f"the split {split!r} has no list of shards"
    return ""


def read_statistics(folder: pathlib.Path) -> dict[str, Any]:
    """Reads `statistics.json` of a prepared folder."""
    return json.loads((folder / "statistics.json").read_text())


class PreparedSource:
    """Records of one split.

    Args:
      folder: folder of the prepared data.
      split: split name.
      inputs: {input name: modality}.
      targets: target names.
    """

    def __init__(self, folder: pathlib.Path, split: str, inputs: Mapping[str, str], targets: tuple[str, ...]):
        self._folder, self._split, self._inputs, self._targets = folder, split, dict(inputs), targets

    def __getstate__(self) -> dict[str, Any]:
        # Open files are not picklable; worker processes reopen them.
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
        """Returns all stored fields of a record, including "key" and "present"."""
        return self._opened[0][index]

    @functools.cached_property
    def _opened(self) -> tuple[Any, dict[str, Any]]:
        """(records, {input name: kind that decodes it})."""
        # Imported here because the decoders are slow to import.
        from mmjax.prepare.kinds import KINDS

        return Records(self._folder, self._split), {name: KINDS[kind]() for name, kind in self._inputs.items()}
