"""Mixture of datasets: each record has the inputs and targets of its dataset; the others are missing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np

from mmjax.config import Formerly
from mmjax.data.dataset import Dataset, Record, Source, check_split
from mmjax.errors import UserError, nearest
from mmjax.files import cache_folder
from mmjax.tokens import TargetSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartConfig:
    """Options of one dataset in a mixture, in addition to the dataset's own keys.

    Attributes:
      name: a name in `mmjax.datasets.DATASETS`.
      rename: {input or target in the dataset: its name in the mixture}. Inputs or targets with equal names are merged;
        rename those that differ.
    """

    name: str
    rename: dict[str, str] = dataclasses.field(default_factory=dict)


class Mixture(Dataset):
    """Combines datasets with different inputs and targets in one run.

    Split "test" holds the records of the "test" splits of all datasets; "NAME/test" holds those of dataset NAME. The
    section `data.sampling` sets the sampling proportions of training.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `Mixture`.

        Attributes:
          datasets: {name of your choice: {"name": a name in `mmjax.datasets.DATASETS`, and keys of that dataset}}.
        """

        datasets: Annotated[dict[str, dict[str, Any]], Formerly("of")]

        def __post_init__(self):
            if not self.datasets:
                raise ValueError("datasets is empty; name at least one dataset")
            for name in self.datasets:
                if not name or "/" in name:
                    raise ValueError(f"a dataset is named {name!r}; use a non-empty name without a slash")

    nested: ClassVar[bool] = True

    def __init__(self, config: Config, make_dataset: Callable[..., tuple[Any, Any]]):
        self._parts = {name: _Part(name, section, make_dataset) for name, section in config.datasets.items()}
        # Merged inputs and targets may differ only in their statistics; those of the first dataset apply.
        inputs = self._merge("inputs", lambda part, name: (part.dataset.inputs[name], part.format_options(name)))
        targets = self._merge("targets", lambda part, name: _without_statistics(part.dataset.targets[name]))
        self._inputs = {new: part.dataset.inputs[name] for new, (part, name) in inputs.items()}
        self._targets = {new: part.dataset.targets[name] for new, (part, name) in targets.items()}

    @property
    def inputs(self) -> Mapping[str, str]:
        return self._inputs

    @property
    def targets(self) -> Mapping[str, TargetSpec]:
        return self._targets

    @property
    def dataset_options(self) -> Mapping[str, Mapping[str, Any]]:
        """{input: modality options of the first dataset with this input}."""
        merged: dict[str, Mapping[str, Any]] = {}
        for part in self._parts.values():
            for name, options in part.dataset_options.items():
                merged.setdefault(part.new_name(name), options)
        return merged

    @property
    def reductions(self) -> Mapping[str, Mapping[str, Any]]:
        """{input: data reduction in the first dataset with this input}, of inputs stored smaller."""
        merged: dict[str, Mapping[str, Any] | None] = {}
        for part in self._parts.values():
            reductions = getattr(part.dataset, "reductions", {})
            for name in part.dataset.inputs:
                merged.setdefault(part.new_name(name), reductions.get(name))
        return {name: reduction for name, reduction in merged.items() if reduction}

    @property
    def checksum(self) -> str:
        """SHA-256 of the names and checksums of all datasets."""
        checksums = {name: getattr(part.dataset, "checksum", None) for name, part in self._parts.items()}
        return hashlib.sha256(json.dumps(checksums).encode()).hexdigest()

    @property
    def splits(self) -> tuple[str, ...]:
        """Combined splits such as "test", then those of each dataset such as "NAME/test"."""
        by_part = {name: part.dataset.splits for name, part in self._parts.items()}
        combined = list(dict.fromkeys(split for splits in by_part.values() for split in splits))
        return (*combined, *(f"{name}/{split}" for name, splits in by_part.items() for split in splits))

    def prepare(self) -> pathlib.Path:
        """Prepares every dataset in its own folder, and returns the cache folder."""
        for part in self._parts.values():
            part.dataset.prepare()
        return cache_folder()

    def source(self, split: str) -> Source:
        return _ConcatSource([part.source(part_split) for part, part_split in self._resolve(split)])

    def columns(self, split: str) -> Mapping[str, np.ndarray]:
        """Returns the column "dataset", and each numeric input column that all datasets with this input provide.

        Records of datasets without the input have NaN.
        """
        parts = self._resolve(split)
        sizes = [len(part.source(part_split)) for part, part_split in parts]
        columns = {"dataset": np.repeat([part.name for part, _ in parts], sizes)}
        measures = [part.measures(part_split) for part, part_split in parts]
        for name in dict.fromkeys(name for known in measures for name in known):
            has_input = [name.partition("/")[0] in part.input_names for part, _ in parts]
            if all(name in known for known, has in zip(measures, has_input, strict=True) if has):
                arrays = [known.get(name, np.full(size, np.nan)) for known, size in zip(measures, sizes, strict=True)]
                columns[name] = np.concatenate(arrays)
        return columns

    def inputs_of(self, split: str) -> set[str]:
        """Returns the inputs that occur in a split."""
        return {name for part, _ in self._resolve(split) for name in part.input_names}

    def ceilings(self, split: str) -> dict[str, dict[str, float]]:
        """Returns the ceilings of a single dataset's split; {} for combined splits, which have no known bound."""
        parts = self._resolve(split)
        if len(parts) > 1:
            return {}
        ((part, part_split),) = parts
        return {part.new_name(target): bounds for target, bounds in part.dataset.ceilings(part_split).items()}

    def _resolve(self, split: str) -> list[tuple[_Part, str]]:
        """Returns (dataset, its split name) for each dataset of a split."""
        check_split(split, self.splits)
        name, slash, part_split = split.rpartition("/")
        if slash:
            return [(self._parts[name], part_split)]
        return [(part, split) for part in self._parts.values() if split in part.dataset.splits]

    def _merge(self, member: str, describe: Callable[[_Part, str], Any]) -> dict[str, tuple[_Part, str]]:
        """Merges the inputs or targets (`member`) of all datasets.

        Returns:
          {name in the mixture: (first dataset that has it, its name in this dataset)}.

        Raises:
          UserError: if `describe` differs between datasets with the same name.
        """
        merged: dict[str, tuple[_Part, str]] = {}
        for part in self._parts.values():
            for name in getattr(part.dataset, member):
                new = part.new_name(name)
                first, first_name = merged.setdefault(new, (part, name))
                if describe(part, name) != describe(first, first_name):
                    problem = f"{new!r} of {part.name!r} differs from {new!r} of {first.name!r}"
                    remedy = f'rename one: rename = {{"{name}": "{part.name}_{name}"}}'
                    raise UserError(f"data.datasets.{part.name}", problem, remedy)
        return merged


def _without_statistics(spec: TargetSpec) -> TargetSpec:
    return dataclasses.replace(spec, mean=0.0, std=1.0)


class _Part:
    """One dataset of a mixture, and its names in the mixture."""

    def __init__(self, name: str, section: Mapping[str, Any], make_dataset: Callable[..., tuple[Any, Any]]):
        where = f"data.datasets.{name}"
        config, dataset = make_dataset(section, PartConfig, where)
        if isinstance(dataset, Mixture):
            raise UserError(f"{where}.name", "mixtures cannot be nested", "list the datasets directly")
        self.name, self.dataset, self._rename = name, dataset, config.rename
        self.dataset_options: Mapping[str, Mapping[str, Any]] = getattr(dataset, "dataset_options", {})
        known = [*dataset.inputs, *dataset.targets]
        for old in self._rename:
            if old not in known:
                raise UserError(f"{where}.rename.{old}", f"unknown input or target {old!r}", nearest(old, known))
        for names in (dataset.inputs, dataset.targets):
            renamed = [self.new_name(old) for old in names]
            for new in renamed:
                if renamed.count(new) > 1:
                    raise UserError(
                        f"{where}.rename", f"two inputs or two targets would be named {new!r}", "choose unique names"
                    )

    def new_name(self, name: str) -> str:
        """Returns the name in the mixture of an input or target."""
        return self._rename.get(name, name)

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs in the mixture."""
        return [self.new_name(name) for name in self.dataset.inputs]

    def measures(self, split: str) -> dict[str, np.ndarray]:
        """Returns {"INPUT/MEASURE": float64 [records]}, the numeric index columns, by names in the mixture."""
        columns: Mapping[str, np.ndarray] = getattr(self.dataset, "columns", lambda split: {})(split)
        measures = {}
        for column, values in columns.items():
            name, slash, measure = column.partition("/")
            if slash and name in self.dataset.inputs and np.asarray(values).dtype.kind in "biuf":
                measures[f"{self.new_name(name)}/{measure}"] = np.asarray(values, float)
        return measures

    def format_options(self, name: str) -> dict[str, Any]:
        """Returns the dataset options of an input except its statistics."""
        return {key: value for key, value in self.dataset_options.get(name, {}).items() if key not in ("mean", "std")}

    def source(self, split: str) -> Source:
        source = self.dataset.source(split)
        return _RenamedSource(source, self._rename) if self._rename else source


@dataclasses.dataclass(frozen=True)
class _RenamedSource:
    """Source with renamed inputs and targets."""

    source: Source
    names: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        record, new = self.source[index], self.names
        return Record(
            {new.get(name, name): value for name, value in record.inputs.items()},
            {new.get(name, name): value for name, value in record.targets.items()},
        )


class _ConcatSource:
    """Concatenation of sources."""

    def __init__(self, sources: Sequence[Source]):
        self._sources = list(sources)
        self._ends = np.cumsum([len(source) for source in sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Record:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self._sources[part][index - int(self._ends[part]) + len(self._sources[part])]
