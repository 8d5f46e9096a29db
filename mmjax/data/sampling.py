"""Sampling weights (config section `data.sampling`) and filters (`data.filter`) over records.

Both read only index columns, available without reading records: "dataset" in a mixture; labels, lengths, groups, folds
and presence in data made by `mmjax prepare`.
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
    """Filter on one index column: training uses only records that satisfy all given conditions.

    Attributes:
      at_least: inclusive lower bound of a numeric column.
      at_most: inclusive upper bound of a numeric column.
      one_of: allowed values.
      none_of: excluded values.
    """

    at_least: float | None = None
    at_most: float | None = None
    one_of: tuple[Any, ...] | None = None
    none_of: tuple[Any, ...] = ()

    def keep_mask(self, values: np.ndarray) -> np.ndarray:
        """Returns bool [records], True for records to keep. NaN fails bounds and `one_of`, and passes `none_of`.

        Raises:
          ValueError: if bounds are given for a column that is not numeric, or a value does not occur in the column.
        """
        mask = np.ones(len(values), bool)
        if (self.at_least, self.at_most) != (None, None):
            if values.dtype.kind not in "biuf":
                raise ValueError("at_least and at_most need a numeric column; use one_of or none_of")
            low, high = (-np.inf if self.at_least is None else self.at_least), self.at_most
            mask &= (values >= low) & (values <= (np.inf if high is None else high))
        if self.one_of is not None:
            mask &= _is_in(values, self.one_of)
        return mask & ~_is_in(values, self.none_of)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Sampling proportions of groups of records in each training batch.

    Without `weights` and `epochs`, a group of n records has weight n ** (1 / temperature), as in Conneau et al.,
    Unsupervised Cross-lingual Representation Learning at Scale, 2020.

    Attributes:
      by: index column whose values define the groups; "dataset" in a mixture.
      temperature: 1 samples in proportion to group size, larger values more uniformly, "infinite" uniformly.
      weights: {group: weight} for all groups; weights need not sum to 1. A list of [data step, weight] is a
        curriculum, linear between steps.
      epochs: {group: repetitions of each of its records per epoch of the whole split}; groups not named have 1.

    Records without a value in the column form the group "None" or "nan", which `data.filter` can exclude.
    """

    by: str = "dataset"
    temperature: Annotated[float, AtLeast(1.0)] | Literal["infinite"] = 1.0
    weights: dict[str, Any] = dataclasses.field(default_factory=dict)
    epochs: dict[str, Annotated[float, AtLeast(0.0)]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if (self.temperature != 1.0) + bool(self.weights) + bool(self.epochs) > 1:
            raise ValueError("temperature, weights and epochs are mutually exclusive; set only one of them")
        for group, weight in self.weights.items():
            schedule = np.asarray(_breakpoints(weight), np.float64)
            if (np.diff(schedule[:, 0]) <= 0).any() or not np.isfinite(schedule).all() or (schedule[:, 1] < 0).any():
                raise ValueError(
                    f"weights.{group} = {weight!r} is not a weight or weight schedule; "
                    "give a number of at least 0, or a list of [step, weight] with increasing steps"
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
    """Returns the training sampler of a split of `size` records. `filters` ({column: filter}) selects among them.

    Raises:
      UserError: if a column or group does not exist, or the filters exclude every record.
    """
    mask = np.ones(size, bool)
    for name, config in (filters or {}).items():
        with convert_value_errors(f"data.filter.{name}"):
            mask &= config.keep_mask(_column(dataset, split, name, f"data.filter.{name}"))
    indices = np.flatnonzero(mask)
    if not len(indices):
        raise UserError("data.filter", f"no record of split {split!r} passes the filters", "relax them")
    if sampling is None:
        return MixtureSampler({"": indices}, {"": [(0, 1.0)]}, batch_size, seed)
    values = _column(dataset, split, sampling.by, "data.sampling.by").astype(str)[indices]
    # Keep the order of first occurrence: in a mixture, the order of the config.
    names, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    groups = {str(names[group]): indices[inverse == group] for group in np.argsort(first)}
    weights = _weights(sampling, {name: len(records) for name, records in groups.items()})
    with convert_value_errors(f"data.sampling.{'epochs' if sampling.epochs else 'weights'}"):
        return MixtureSampler(groups, weights, batch_size, seed)


def _weights(config: SamplingConfig, sizes: Mapping[str, int]) -> dict[str, Breakpoints]:
    for key, section in (("weights", config.weights), ("epochs", config.epochs)):
        for group in section:
            if group not in sizes:
                problem = f"the column {config.by!r} has no value {group!r}"
                raise UserError(f"data.sampling.{key}.{group}", problem, nearest(group, sizes))
    if config.weights:
        for group in sizes:
            if group not in config.weights:
                raise UserError(f"data.sampling.weights.{group}", "is missing", "give it a weight, which may be 0")
        return {group: _breakpoints(config.weights[group]) for group in sizes}
    if config.epochs:
        return {group: [(0, config.epochs.get(group, 1.0) * size)] for group, size in sizes.items()}
    power = 0.0 if config.temperature == "infinite" else 1.0 / config.temperature
    return {group: [(0, size**power)] for group, size in sizes.items()}


def _is_in(values: np.ndarray, options: tuple[Any, ...]) -> np.ndarray:
    """Elementwise membership, bool [records]. Raises ValueError for an option that never occurs."""
    mask = np.zeros(len(values), bool)
    for option in options:
        numeric = isinstance(option, bool | int | float)
        equal = values == option if values.dtype.kind in "biuf" and numeric else values.astype(str) == str(option)
        if not equal.any():
            known = map(str, np.unique(values)[:50])
            raise ValueError(f"the column has no value {option!r}; {nearest(str(option), known)}")
        mask |= equal
    return mask


def _breakpoints(weight: Any) -> Breakpoints:
    if isinstance(weight, int | float) and not isinstance(weight, bool):
        return [(0, float(weight))]
    try:
        points = [(float(step), float(value)) for step, value in weight]
    except (TypeError, ValueError):
        points = []
    # Represent an invalid schedule by a negative weight, which the range check rejects.
    return points or [(0, -1.0)]


def _column(dataset: Dataset, split: str, name: str, where: str) -> np.ndarray:
    columns: Mapping[str, np.ndarray] = getattr(dataset, "columns", lambda split: {})(split)
    if name not in columns:
        remedy = nearest(name, columns) if columns else "this dataset has no index columns"
        raise UserError(where, f"the index has no column {name!r}", remedy)
    return np.asarray(columns[name])
