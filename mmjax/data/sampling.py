"""The section `data.sampling`: how often training sees which records, and `data.filter`: which it never sees.

Both look at columns that a dataset knows of its records without reading them: "dataset" in a mixture; in what `mmjax
prepare` made, all of its index: labels, lengths, groups, folds, and what is present.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np

from mmjax.config import AtLeast, convert_value_errors
from mmjax.data.dataset import Dataset
from mmjax.data.samplers import Breakpoints, MixtureSampler
from mmjax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """What a column must say for a record to be trained on. All that are given must hold.

    Attributes:
      at_least, at_most: bounds of a number.
      one_of, none_of: values.
    """

    at_least: float | None = None
    at_most: float | None = None
    one_of: tuple[Any, ...] | None = None
    none_of: tuple[Any, ...] = ()

    def keeps(self, values: np.ndarray) -> np.ndarray:
        """Bool [records]. What is not known (NaN) has no bounds and is one of nothing.

        Raises:
          ValueError: if the column has words where numbers are asked for, or never the value that is.
        """
        kept = np.ones(len(values), bool)
        if (self.at_least, self.at_most) != (None, None):
            if values.dtype.kind not in "biuf":
                raise ValueError("the column has words, which have no bounds; use one_of or none_of")
            low, high = (-np.inf if self.at_least is None else self.at_least), self.at_most
            kept &= (values >= low) & (values <= (np.inf if high is None else high))
        if self.one_of is not None:
            kept &= _among(values, self.one_of)
        return kept & ~_among(values, self.none_of)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How large a part of each batch comes from each group of records.

    Without `weights` and `epochs`, a group's share goes with its size n as n ** (1 / temperature), as in Conneau et
    al., Unsupervised Cross-lingual Representation Learning at Scale, 2020.

    Attributes:
      by: the column whose values make the groups; "dataset" in a mixture.
      temperature: 1 for as the records come, more for more equal shares, "infinite" for equal ones.
      weights: {group: weight}, all groups, which need not add up to 1. A list of [data step, weight] is a curriculum:
        linear from one to the next.
      epochs: {group: how often an epoch of the whole holds each of its records}, 1 where a group is not named.

    Records that lack the column's value are a group of their own, "None" or "nan", which `data.filter` can leave out.
    """

    by: str = "dataset"
    temperature: Annotated[float, AtLeast(1.0)] | Literal["infinite"] = 1.0
    weights: dict[str, Any] = dataclasses.field(default_factory=dict)
    epochs: dict[str, Annotated[float, AtLeast(0.0)]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if (self.temperature != 1.0) + bool(self.weights) + bool(self.epochs) > 1:
            raise ValueError("temperature, weights and epochs exclude each other; leave all but one out")
        for group, weight in self.weights.items():
            points = np.asarray(_points(weight), np.float64)
            if (np.diff(points[:, 0]) <= 0).any() or not np.isfinite(points).all() or (points[:, 1] < 0).any():
                raise ValueError(
                    f"weights.{group} = {weight!r} is no weight over time; "
                    "give a number of at least 0, or a list of [step, weight] in the order of steps"
                )


def make_sampler(
    dataset: Dataset,
    split: str,
    size: int,
    batch_size: int,
    seed: int,
    sampling: SamplingConfig | None = None,
    filters: Mapping[str, FilterConfig] | None = None,
) -> MixtureSampler:
    """The order in which training sees a split of `size` records.

    Raises:
      UserError: if there is no such column or group, or nothing is left.
    """
    kept = np.ones(size, bool)
    for name, each in (filters or {}).items():
        with convert_value_errors(f"data.filter.{name}"):
            kept &= each.keeps(_column(dataset, split, name, f"data.filter.{name}"))
    numbers = np.flatnonzero(kept)
    if not len(numbers):
        raise UserError("data.filter", f"no record of {split!r} is left", "ask for less")
    if sampling is None:
        return MixtureSampler({"": numbers}, {"": [(0, 1.0)]}, batch_size, seed)
    values = _column(dataset, split, sampling.by, "data.sampling.by").astype(str)[numbers]
    # In the order in which they come, which is that of the recipe in a mixture.
    names, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    groups = {str(names[which]): numbers[inverse == which] for which in np.argsort(first)}
    weights = _weights(sampling, {name: len(records) for name, records in groups.items()})
    with convert_value_errors(f"data.sampling.{'epochs' if sampling.epochs else 'weights'}"):
        return MixtureSampler(groups, weights, batch_size, seed)


def _weights(config: SamplingConfig, sizes: Mapping[str, int]) -> dict[str, Breakpoints]:
    for where, named in (("weights", config.weights), ("epochs", config.epochs)):
        for group in named:
            if group not in sizes:
                problem = f"the column {config.by!r} has no {group!r}"
                raise UserError(f"data.sampling.{where}.{group}", problem, nearest(group, sizes))
    if config.weights:
        for group in sizes:
            if group not in config.weights:
                raise UserError(f"data.sampling.weights.{group}", "is missing", "give it a weight, which may be 0")
        return {group: _points(config.weights[group]) for group in sizes}
    if config.epochs:
        return {group: [(0, config.epochs.get(group, 1.0) * size)] for group, size in sizes.items()}
    power = 0.0 if config.temperature == "infinite" else 1.0 / config.temperature
    return {group: [(0, size**power)] for group, size in sizes.items()}


def _among(values: np.ndarray, wanted: tuple[Any, ...]) -> np.ndarray:
    found = np.zeros(len(values), bool)
    for value in wanted:
        numeric = isinstance(value, bool | int | float)
        this = values == value if values.dtype.kind in "biuf" and numeric else values.astype(str) == str(value)
        if not this.any():
            raise ValueError(f"the column never has {value!r}; {nearest(str(value), map(str, np.unique(values)[:50]))}")
        found |= this
    return found


def _points(weight: Any) -> Breakpoints:
    if isinstance(weight, int | float) and not isinstance(weight, bool):
        return [(0, float(weight))]
    try:
        points = [(float(step), float(value)) for step, value in weight]
    except (TypeError, ValueError):
        points = []
    # What is no list of points is refused like one that is out of range.
    return points or [(0, -1.0)]


def _column(dataset: Dataset, split: str, name: str, where: str) -> np.ndarray:
    columns: Mapping[str, np.ndarray] = getattr(dataset, "columns", lambda split: {})(split)
    if name not in columns:
        problem = f"nothing is known of {name!r} before a record is read"
        raise UserError(where, problem, nearest(name, columns) if columns else "this dataset has no such columns")
    return np.asarray(columns[name])
