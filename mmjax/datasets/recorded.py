"""Record of a run's data: metadata for preprocessing, predictions and comparisons, without the examples.

A run writes `preprocessing/dataset.json` when it starts: names and classes of the targets in order, statistics of
targets and inputs, splits, and the checksum of the records. `mmjax predict` reads this file instead of the dataset.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mmjax.config import build
from mmjax.data.dataset import Dataset, Record, Source
from mmjax.errors import UserError, nearest
from mmjax.files import read_json, write_atomically
from mmjax.tokens import TargetSpec

_MAX_NAMES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Content:
    """Contents of `dataset.json`; see `describe`."""

    checksum: str | None
    inputs: dict[str, str]
    options: dict[str, dict[str, Any]]
    splits: dict[str, tuple[str, ...]]
    targets: dict[str, TargetSpec]
    reduced: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


class RecordedDataset:
    """Inputs, targets and statistics of a dataset as a run recorded them. Has no examples.

    Args:
      content: contents of `dataset.json`; see `describe`.

    Raises:
      UserError: if a key is missing or unknown, or a value has the wrong type.
    """

    def __init__(self, content: Mapping[str, Any]):
        parsed = build(_Content, content, "preprocessing/dataset.json")
        self.inputs: Mapping[str, str] = parsed.inputs
        self.targets: Mapping[str, TargetSpec] = parsed.targets
        for name, spec in parsed.targets.items():
            if min(spec.shape, default=0) < 0 or not _is_numeric(spec.dtype):
                problem = f"{spec.dtype} {list(spec.shape)} is not the type of a target"
                raise UserError(f"preprocessing/dataset.json targets.{name}", problem, "restore the file")
        self.dataset_options: Mapping[str, Mapping[str, Any]] = parsed.options
        self.reductions: Mapping[str, Mapping[str, Any]] = parsed.reduced
        self.checksum: str | None = parsed.checksum
        self._splits = parsed.splits

    @property
    def splits(self) -> tuple[str, ...]:
        """Split names, "train" first."""
        return tuple(self._splits)

    def inputs_of(self, split: str) -> set[str]:
        """Returns the inputs that occur in a split."""
        return set(self._splits[split])

    def prepare(self) -> pathlib.Path:
        """Raises a UserError, because a record has no examples."""
        raise _no_examples()

    def source(self, split: str) -> Source:
        """Raises a UserError, because a record has no examples."""
        raise _no_examples()

    def ceilings(self, split: str) -> dict[str, dict[str, float]]:
        """Returns {}: no known upper bound."""
        return {}


def _is_numeric(dtype: str) -> bool:
    try:
        return np.dtype(dtype).kind in "biuf"
    except TypeError:
        return False


def _no_examples() -> UserError:
    return UserError("data", "the record of a run's data has no examples", "open the dataset")


def describe(dataset: Dataset) -> dict[str, Any]:
    """Returns the record of a dataset, as plain values, with inputs, targets and classes in order."""
    inputs_of = getattr(dataset, "inputs_of", lambda split: dataset.inputs)
    content = {
        "checksum": getattr(dataset, "checksum", None),
        "inputs": dict(dataset.inputs),
        "options": {name: dict(options) for name, options in getattr(dataset, "dataset_options", {}).items()},
        "reduced": dict(getattr(dataset, "reductions", {})),
        "splits": {split: [name for name in dataset.inputs if name in inputs_of(split)] for split in dataset.splits},
        "targets": {name: dataclasses.asdict(spec) for name, spec in dataset.targets.items()},
    }
    return json.loads(json.dumps(content))


def write_record(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Writes a record as JSON without sorting its keys: the columns of an input may depend on their order."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def read_record(path: pathlib.Path) -> dict[str, Any]:
    """Reads a record.

    Raises:
      UserError: if the file is missing or damaged.
    """
    remedy = "restore it from a copy of the workdir, or train in a new workdir"
    try:
        content = read_json(path)
        RecordedDataset(content)
    except FileNotFoundError:
        raise UserError("--workdir", f"{path}, the record of the run's data, does not exist", remedy) from None
    except (OSError, ValueError) as error:
        raise UserError("--workdir", f"{path} is damaged ({type(error).__name__}: {error})", remedy) from None
    except UserError as error:
        raise UserError("--workdir", f"{path} is damaged ({error.where}: {error.problem})", remedy) from None
    return content


def differences(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Returns one phrase for each part of the data that differs from the record: classes, statistics, checksum."""
    problems = []
    for kind, key in (("target", "targets"), ("input", "inputs"), ("split", "splits")):
        if list(recorded[key]) != list(found[key]):
            problems.append(f"the {kind}s are {_names(found[key])}, not {_names(recorded[key])}")
    for name, old in recorded["targets"].items():
        new = found["targets"].get(name, old)
        if old["classes"] != new["classes"]:
            problems.append(f"the classes of {name!r} are {_names(new['classes'])}, not {_names(old['classes'])}")
        for key in sorted(old.keys() | new.keys()):
            if key != "classes" and old.get(key) != new.get(key):
                problems.append(f"{key} of the target {name!r} is {new.get(key)}, not {old.get(key)}")
    for name, old in recorded["inputs"].items():
        new = found["inputs"].get(name, old)
        if old != new:
            problems.append(f"the input {name!r} is of kind {new!r}, not {old!r}")
        old, new = recorded["options"].get(name, {}), found["options"].get(name, {})
        changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
        if changed:
            problems.append(f"{', '.join(changed)} of the input {name!r} differ")
        if "reduced" in recorded and recorded["reduced"].get(name) != found["reduced"].get(name):
            problems.append(f"the data reduction of the input {name!r} differs")
    if recorded["checksum"] != found["checksum"]:
        old, new = (str(content["checksum"])[:12] for content in (recorded, found))
        problems.append(f"the checksum of the records is {new}…, not {old}…")
    return problems


def _names(names: Iterable[str]) -> str:
    names = list(names)
    rest = [f"and {len(names) - _MAX_NAMES} more"] if len(names) > _MAX_NAMES else []
    return ", ".join([*map(repr, names[:_MAX_NAMES]), *rest]) or "none"


class OtherData:
    """Another dataset of the same schema, read with the classes and statistics of a run.

    Class indices are translated by the classes' names. Inputs and targets that only the other dataset has are ignored.

    Args:
      recorded: the data that the run was trained on.
      other: the dataset to read.

    Raises:
      UserError: if `other` lacks an input or a target, or differs in their kind, columns, categories or classes.
    """

    def __init__(self, recorded: RecordedDataset, other: Dataset):
        self.inputs, self.targets = recorded.inputs, recorded.targets
        self.dataset_options = recorded.dataset_options
        self._other = other
        other_options = getattr(other, "dataset_options", {})
        for name, kind in self.inputs.items():
            if name not in other.inputs:
                raise _other_schema(f"has no input {name!r}", nearest(name, other.inputs))
            if other.inputs[name] != kind:
                raise _other_schema(f"has an input {name!r} of kind {other.inputs[name]!r}, not {kind!r}")
            old, new = self.dataset_options.get(name, {}), other_options.get(name, {})
            for key in sorted(old.keys() | new.keys()):
                # Compare only lists of names, since raw data may hold indices into them. The rest is preprocessing.
                if (_holds_names(old.get(key)) or _holds_names(new.get(key))) and _plain(old, key) != _plain(new, key):
                    raise _other_schema(f"has different {key} in the input {name!r}")
        self._indices = {}
        for name, spec in self.targets.items():
            if name not in other.targets:
                raise _other_schema(f"has no target {name!r}", nearest(name, other.targets))
            found = other.targets[name]
            if (found.shape, found.dtype, bool(found.classes)) != (spec.shape, spec.dtype, bool(spec.classes)):
                raise _other_schema(f"has a target {name!r} of another type")
            unknown = [label for label in found.classes if label not in spec.classes]
            if unknown:
                raise _other_schema(f"has classes of {name!r} that the run does not know: {_names(unknown)}")
            if found.classes != spec.classes and spec.shape:
                raise _other_schema(f"has another order of the classes of {name!r}")
            if found.classes != spec.classes:
                self._indices[name] = np.array([spec.classes.index(label) for label in found.classes], spec.dtype)

    @property
    def splits(self) -> tuple[str, ...]:
        """Split names of the other dataset."""
        return self._other.splits

    def inputs_of(self, split: str) -> set[str]:
        """Returns the inputs that occur in a split."""
        found = getattr(self._other, "inputs_of", lambda split: self._other.inputs)(split)
        return {name for name in self.inputs if name in found}

    def columns(self, split: str) -> Mapping[str, np.ndarray]:
        """Returns the index columns of the other dataset."""
        return getattr(self._other, "columns", lambda split: {})(split)

    def prepare(self) -> pathlib.Path:
        """Prepares the other dataset and returns its folder."""
        return self._other.prepare()

    def source(self, split: str) -> Source:
        """Returns the records of a split, with the run's class indices."""
        source = self._other.source(split)
        return _TranslatedSource(source, self._indices) if self._indices else source

    def ceilings(self, split: str) -> dict[str, dict[str, float]]:
        """Returns the upper bounds of the other dataset."""
        return self._other.ceilings(split)


def _other_schema(problem: str, remedy: str = "") -> UserError:
    return UserError("--data", f"the dataset {problem}", remedy or "give data of the same schema as the run's")


def _plain(options: Mapping[str, Any], key: str) -> Any:
    return json.loads(json.dumps(options.get(key)))


def _holds_names(value: Any) -> bool:
    """Returns True for lists and dicts that contain strings, such as columns and their categories."""
    if isinstance(value, Mapping):
        return any(_holds_names(item) for item in value.values())
    return isinstance(value, (list, tuple)) and any(isinstance(item, str) or _holds_names(item) for item in value)


@dataclasses.dataclass(frozen=True)
class _TranslatedSource:
    """Source whose class indices are translated to those of the run.

    Attributes:
      source: source to read.
      indices: `{target: array}` that maps class indices of the source to class indices of the run.
    """

    source: Source
    indices: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        record = self.source[index]
        targets = dict(record.targets)
        for name, indices in self.indices.items():
            if targets[name] is not None:
                targets[name] = indices[targets[name]]
        return Record(record.inputs, targets)
