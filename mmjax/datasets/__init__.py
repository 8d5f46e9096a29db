"""Datasets, selected by name in `DATASETS`.

A dataset is a class with a nested frozen dataclass `Config` and these members; see `mmjax.data.dataset.Dataset`:

    prepare() -> pathlib.Path                     writes the files once
    splits -> tuple[str, ...]                     split names, "train" first
    inputs -> {name: modality}                    modalities are keys of `mmjax.modalities.MODALITIES`
    targets -> {name: TargetSpec}
    source(split) -> Source                       len(source), and source[i] -> Record(inputs, targets)
    ceilings(split) -> {target: {subset: accuracy}}
    dataset_options -> {input: options}           optional: modality options that the data determines
    reductions -> {input: data reduction}         optional: inputs that are stored smaller; `predict` reduces them alike
    inputs_of(split) -> {names}                   optional: inputs that occur in the split
    columns(split) -> {name: array}               optional: index columns, available without reading records
    checksum -> str                               optional: SHA-256 of the records, by which a run recognises its data
    nested -> bool                                optional: True if the constructor takes `make_dataset` as well

Importing this package is fast: slow dependencies are imported where they are used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from mmjax.config import build, unknown_key
from mmjax.data.dataset import Dataset, Record, Source
from mmjax.datasets.digits.avmnist import Avmnist
from mmjax.datasets.digits.digits import Digits
from mmjax.datasets.mixture import Mixture
from mmjax.datasets.prepared import Prepared
from mmjax.datasets.synthetic import Synthetic
from mmjax.errors import UserError, nearest

Shared = TypeVar("Shared")

DATASETS: dict[str, type[Dataset]] = {
    "avmnist": Avmnist,
    "digits": Digits,
    "mixture": Mixture,
    "prepared": Prepared,
    "synthetic": Synthetic,
}


def shared_config(section: Any, shared: type[Shared], where: str = "data") -> Shared:
    """Builds `shared` from its keys of a config section, and ignores the dataset's own keys."""
    if not isinstance(section, Mapping):
        raise UserError(where, f"{section!r} is not a section", "give a dict with the key 'name'")
    keys = {field.name for field in dataclasses.fields(shared)}  # type: ignore[arg-type]
    return build(shared, {key: value for key, value in section.items() if key in keys}, where)


def make_dataset(section: Any, shared: type[Shared], where: str = "data") -> tuple[Shared, Dataset]:
    """Builds the dataset named in a config section, without preparing it.

    Args:
      section: `name`, other keys of `shared`, and keys of the dataset's `Config`.
      shared: dataclass of the keys common to all datasets, including `name`.
      where: config path of the section, for error messages.

    Returns:
      (shared config, dataset).

    Raises:
      UserError: if the section is invalid.
    """
    config: Any = shared_config(section, shared, where)
    shared_keys = {field.name for field in dataclasses.fields(shared)}  # type: ignore[arg-type]
    if config.name not in DATASETS:
        raise UserError(f"{where}.name", f"unknown dataset {config.name!r}", nearest(config.name, DATASETS))
    cls: Any = DATASETS[config.name]
    dataset_keys = {field.name for field in dataclasses.fields(cls.Config)}
    for key in section:
        if key not in shared_keys | dataset_keys:
            raise unknown_key(key, where, shared, cls.Config)
    dataset_config = build(cls.Config, {key: value for key, value in section.items() if key in dataset_keys}, where)
    factory = (make_dataset,) if getattr(cls, "nested", False) else ()
    return config, cls(dataset_config, *factory)
