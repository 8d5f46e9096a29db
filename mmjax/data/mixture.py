"""Several datasets as one: each record has the inputs and targets of its own dataset, and lacks those of the others."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
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
      name: a name in `mmjax.data.DATASETS`.
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
          of: {a name of your own: {"name": a name in `mmjax.data.DATASETS`, and that one's keys}}.
        """

        of: dict[str, dict[str, Any]]

        def __post_init__(self):
            if not self.of:
                raise ValueError("of is empty; name at least one dataset")
            for name in self.of:
                if not name or "/" in name:
                    raise ValueError(f"of has a dataset named {name!r}; give names without a slash")

    def __init__(self, config: Config):
        self._parts = {name: _Part(section, f"data.of.{name}") for name, section in config.of.items()}
        self.inputs: Mapping[str, str] = self._together("inputs")
        self.targets: Mapping[str, TargetSpec] = self._together("targets")

    @property
    def facts(self) -> Mapping[str, Mapping[str, Any]]:
        """Those of the first dataset that has the input."""
        found: dict[str, Mapping[str, Any]] = {}
        for part in self._parts.values():
            for own, facts in getattr(part.dataset, "facts", {}).items():
                found.setdefault(part.rename.get(own, own), facts)
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
        """The column "dataset"."""
        parts = self._of(split)
        names = {id(part): name for name, part in self._parts.items()}
        sizes = [len(part.source(own)) for part, own in parts]
        return {"dataset": np.repeat([names[id(part)] for part, _ in parts], sizes)}

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

    def _together(self, members: str) -> dict[str, Any]:
        """The inputs or the targets of all datasets, by their names in the mixture."""
        found: dict[str, tuple[str, Any]] = {}
        for name, part in self._parts.items():
            for own, kind in getattr(part.dataset, members).items():
                renamed = part.rename.get(own, own)
                first, known = found.setdefault(renamed, (name, kind))
                if known != kind:
                    problem = f"{renamed!r} of {name!r} is not what it is in {first!r}: {kind} and {known}"
                    remedy = f'give it another name: rename = {{"{own}": "{name}_{own}"}}'
                    raise UserError(f"data.of.{name}", problem, remedy)
        return {name: kind for name, (_, kind) in found.items()}


class _Part:
    """One of the datasets, with its names in the mixture."""

    def __init__(self, section: Mapping[str, Any], where: str):
        # A mixture is itself one of the datasets that are named there.
        from mmjax.data import make_dataset

        config, self.dataset = make_dataset(section, PartConfig, where)
        self.rename = config.rename
        known = [*self.dataset.inputs, *self.dataset.targets]
        for name in self.rename:
            if name not in known:
                raise UserError(f"{where}.rename.{name}", f"there is no {name!r} to rename", nearest(name, known))

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

    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        together = getattr(self.source, "__getitems__", None)
        records = [self.source[index] for index in indices] if together is None else together(indices)
        return [self._renamed(record) for record in records]

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

    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        numbers = np.asarray(indices, np.int64)
        which = np.searchsorted(self._ends, numbers, side="right")
        records: list[Record] = [None] * len(numbers)  # type: ignore[list-item]
        for part in np.unique(which).tolist():
            source, slots = self._sources[part], np.flatnonzero(which == part)
            own = (numbers[slots] - self._ends[part] + len(source)).tolist()
            together = getattr(source, "__getitems__", None)
            found = [source[number] for number in own] if together is None else together(own)
            for slot, record in zip(slots.tolist(), found, strict=True):
                records[slot] = record
        return records
