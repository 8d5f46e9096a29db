"""Several datasets as one: each record has the inputs and targets of its own dataset, and lacks those of the others."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.data.dataset import Record, Source, check_split
from mmjax.errors import UserError, nearest
from mmjax.files import cache_folder
from mmjax.tokens import TargetSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartConfig:
    """What a mixture says of one of its datasets; every other key is the dataset's own.

    Attributes:
      name: a name in `mmjax.datasets.DATASETS`.
      rename: {name of an input or target in the dataset: its name in the mixture}. Equal names mean the same input, or
        the same target: give what differs another name.
    """

    name: str
    rename: dict[str, str] = dataclasses.field(default_factory=dict)


class Mixture:
    """Datasets with different inputs and targets in one run.

    Its splits are those of its datasets, each after all of them together: "test" holds the records of every "test", and
    "NAME/test" those of one dataset. How often each is seen in training is for the section `data.sampling` to say.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """The datasets.

        Attributes:
          of: {a name of your own: {"name": a name in `mmjax.datasets.DATASETS`, and that one's keys}}.
        """

        of: dict[str, dict[str, Any]]

        def __post_init__(self):
            if not self.of:
                raise ValueError("of is empty; name at least one dataset")
            for name in self.of:
                if not name or "/" in name:
                    raise ValueError(f"of has a dataset named {name!r}; give names without a slash")

    def __init__(self, config: Config, make_dataset: Callable[..., tuple[Any, Any]]):
        self._parts = {name: _Part(name, section, make_dataset) for name, section in config.of.items()}
        # A table has the same columns everywhere; what standardises them may differ, and is that of the first dataset.
        inputs = self._together("inputs", lambda part, own: (part.dataset.inputs[own], part.form_of(own)))
        targets = self._together("targets", lambda part, own: _form(part.dataset.targets[own]))
        self.inputs: Mapping[str, str] = {name: part.dataset.inputs[own] for name, (part, own) in inputs.items()}
        self.targets: Mapping[str, TargetSpec] = {
            name: part.dataset.targets[own] for name, (part, own) in targets.items()
        }

    @property
    def dataset_options(self) -> Mapping[str, Mapping[str, Any]]:
        """Those of the first dataset that has the input."""
        found: dict[str, Mapping[str, Any]] = {}
        for part in self._parts.values():
            for own, dataset_options in part.dataset_options.items():
                found.setdefault(part.rename.get(own, own), dataset_options)
        return found

    @property
    def splits(self) -> tuple[str, ...]:
        each = {name: part.dataset.splits for name, part in self._parts.items()}
        together = list(dict.fromkeys(split for splits in each.values() for split in splits))
        return (*together, *(f"{name}/{split}" for name, splits in each.items() for split in splits))

    def prepare(self) -> pathlib.Path:
        """Prepares each dataset where it belongs; returns the cache folder."""
        for part in self._parts.values():
            part.dataset.prepare()
        return cache_folder()

    def source(self, split: str) -> Source:
        return _Sources([part.source(own) for part, own in self._of(split)])

    def columns(self, split: str) -> Mapping[str, np.ndarray]:
        """The column "dataset", and the numbers that all datasets with an input know of it: NaN in the others."""
        parts = self._of(split)
        sizes = [len(part.source(own)) for part, own in parts]
        found = {"dataset": np.repeat([part.name for part, _ in parts], sizes)}
        each = [part.measures(own) for part, own in parts]
        for name in dict.fromkeys(name for known in each for name in known):
            having = [name.partition("/")[0] in part.names for part, _ in parts]
            if all(name in known for known, has in zip(each, having, strict=True) if has):
                columns = [known.get(name, np.full(size, np.nan)) for known, size in zip(each, sizes, strict=True)]
                found[name] = np.concatenate(columns)
        return found

    def inputs_of(self, split: str) -> set[str]:
        """The inputs that examples of a split can have: those of its datasets."""
        return {part.rename.get(own, own) for part, _ in self._of(split) for own in part.dataset.inputs}

    def ceilings(self, split: str) -> dict[str, dict[str, float]]:
        """Those of the dataset, for a split of one dataset; a mixture's own are unknown."""
        parts = self._of(split)
        if len(parts) > 1:
            return {}
        ((part, own),) = parts
        return {part.rename.get(target, target): known for target, known in part.dataset.ceilings(own).items()}

    def _of(self, split: str) -> list[tuple[_Part, str]]:
        """The datasets of a split, with the names that they have for it."""
        check_split(split, self.splits)
        name, slash, own = split.rpartition("/")
        if slash:
            return [(self._parts[name], own)]
        return [(part, split) for part in self._parts.values() if split in part.dataset.splits]

    def _together(self, members: str, look: Callable[[_Part, str], Any]) -> dict[str, tuple[_Part, str]]:
        """{name in the mixture: the first dataset that has it, its name there}, of the inputs or of the targets.

        Raises:
          UserError: where what `look` sees differs between datasets that have one name.
        """
        found: dict[str, tuple[_Part, str]] = {}
        for part in self._parts.values():
            for own in getattr(part.dataset, members):
                name = part.rename.get(own, own)
                first, theirs = found.setdefault(name, (part, own))
                if look(part, own) != look(first, theirs):
                    problem = f"{name!r} of {part.name!r} is not what it is in {first.name!r}"
                    remedy = f'give it another name: rename = {{"{own}": "{part.name}_{own}"}}'
                    raise UserError(f"data.of.{part.name}", problem, remedy)
        return found


def _form(spec: TargetSpec) -> TargetSpec:
    return dataclasses.replace(spec, mean=0.0, std=1.0)


class _Part:
    """One of the datasets, with its names in the mixture."""

    def __init__(self, name: str, section: Mapping[str, Any], make_dataset: Callable[..., tuple[Any, Any]]):
        where = f"data.of.{name}"
        config, dataset = make_dataset(section, PartConfig, where)
        if isinstance(dataset, Mixture):
            raise UserError(f"{where}.name", "a mixture of mixtures has no use", "name their datasets here")
        self.name, self.dataset, self.rename = name, dataset, config.rename
        self.dataset_options: Mapping[str, Mapping[str, Any]] = getattr(dataset, "dataset_options", {})
        known = [*dataset.inputs, *dataset.targets]
        for old in self.rename:
            if old not in known:
                raise UserError(f"{where}.rename.{old}", f"there is no {old!r} to rename", nearest(old, known))
        for names in (dataset.inputs, dataset.targets):
            renamed = [self.rename.get(own, own) for own in names]
            for new in renamed:
                if renamed.count(new) > 1:
                    raise UserError(f"{where}.rename", f"two would be named {new!r}", "give each a name of its own")

    @property
    def names(self) -> list[str]:
        """Those of its inputs, in the mixture."""
        return [self.rename.get(own, own) for own in self.dataset.inputs]

    def measures(self, split: str) -> dict[str, np.ndarray]:
        """{"INPUT/MEASURE": numbers} of the records of a split, by the names in the mixture."""
        columns: Mapping[str, np.ndarray] = getattr(self.dataset, "columns", lambda split: {})(split)
        found = {}
        for name, values in columns.items():
            own, slash, measure = name.partition("/")
            if slash and own in self.dataset.inputs and np.asarray(values).dtype.kind in "biuf":
                found[f"{self.rename.get(own, own)}/{measure}"] = np.asarray(values, float)
        return found

    def form_of(self, own: str) -> dict[str, Any]:
        """What the facts of an input say of its form, and not of its values."""
        return {name: fact for name, fact in self.dataset_options.get(own, {}).items() if name not in ("mean", "std")}

    def source(self, split: str) -> Source:
        source = self.dataset.source(split)
        return _Renamed(source, self.rename) if self.rename else source


@dataclasses.dataclass(frozen=True)
class _Renamed:
    """A source whose inputs and targets have other names."""

    source: Source
    names: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        return self._renamed(self.source[index])

    def _renamed(self, record: Record) -> Record:
        new = self.names
        return Record(
            {new.get(name, name): value for name, value in record.inputs.items()},
            {new.get(name, name): value for name, value in record.targets.items()},
        )


class _Sources:
    """Several sources, one after the other."""

    def __init__(self, sources: Sequence[Source]):
        self._sources = list(sources)
        self._ends = np.cumsum([len(source) for source in sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Record:
        which = int(np.searchsorted(self._ends, index, side="right"))
        return self._sources[which][index - int(self._ends[which]) + len(self._sources[which])]
