"""Datasets: what there is to learn from.

A dataset is chosen by its name in `DATASETS`; it is a class with a nested frozen dataclass `Config` and these members,
which `mmjax.data.dataset.Dataset` describes:

    prepare() -> pathlib.Path                     makes the files, once
    splits -> tuple[str, ...]                     names of the splits, "train" first
    inputs -> {name: kind}                        kinds are those of `mmjax.modalities.MODALITIES`
    targets -> {name: TargetSpec}
    source(split) -> Source                       len(source), and source[i] -> Record(inputs, targets)
    ceilings(split) -> {target: {subset: accuracy}}
    dataset_options -> {input: options}                     of its modality, that the data decides; may be left out
    inputs_of(split) -> {names}                   where a split never has some of the inputs; may be left out
    columns(split) -> {name: array}               what is known of each record before it is read; may be left out

Importing this package is quick: what takes seconds to import is imported where it is used.
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

__all__ = [
    "DATASETS",
    "Avmnist",
    "Dataset",
    "Digits",
    "Mixture",
    "Prepared",
    "Record",
    "Source",
    "Synthetic",
    "make_dataset",
]


def make_dataset(section: Any, shared: type[Shared], where: str = "data") -> tuple[Shared, Dataset]:
    """Makes the dataset that a section of the config names; nothing is prepared yet.

    Args:
      section: `name`, keys of `shared`, and the dataset's own.
      shared: a dataclass of the keys that all datasets have here, `name` among them.

    Raises:
      UserError: where the section is wrong.
    """
    if not isinstance(section, Mapping):
        raise UserError(where, f"{section!r} is not a section", "give a dict with the key 'name'")
    keys = {field.name for field in dataclasses.fields(shared)}  # type: ignore[arg-type]
    config: Any = build(shared, {key: value for key, value in section.items() if key in keys}, where)
    if config.name not in DATASETS:
        raise UserError(f"{where}.name", f"unknown dataset {config.name!r}", nearest(config.name, DATASETS))
    cls: Any = DATASETS[config.name]
    own = {field.name for field in dataclasses.fields(cls.Config)}
    for key in section:
        if key not in keys | own:
            raise unknown_key(key, where, shared, cls.Config)
    own_config = build(cls.Config, {key: value for key, value in section.items() if key in own}, where)
    return config, Mixture(own_config, make_dataset) if cls is Mixture else cls(own_config)
