"""Data: what there is to learn from, and how it becomes batches.

A dataset is chosen by its name in `DATASETS`; it is a class with a nested frozen dataclass `Config` and these members,
which `mmjax.data.dataset.Dataset` describes:

    prepare() -> pathlib.Path                     makes the files, once
    splits -> tuple[str, ...]                     names of the splits, "train" first
    inputs -> {name: kind}                        kinds are those of `mmjax.modalities.MODALITIES`
    targets -> {name: TargetSpec}
    source(split) -> Source                       len(source), and source[i] -> Record(inputs, targets)
    ceilings(split) -> {target: {subset: accuracy}}

Importing this package is quick: what takes seconds to import is imported where it is used.
"""

from __future__ import annotations

from mmjax.data.avmnist import Avmnist
from mmjax.data.dataset import Dataset, Record, Source
from mmjax.data.digits import Digits
from mmjax.data.prepared import Prepared
from mmjax.data.synthetic import Synthetic

DATASETS: dict[str, type[Dataset]] = {
    "avmnist": Avmnist,
    "digits": Digits,
    "prepared": Prepared,
    "synthetic": Synthetic,
}

__all__ = ["DATASETS", "Avmnist", "Dataset", "Digits", "Prepared", "Record", "Source", "Synthetic"]
