"""What experiment.json holds: the recipes, folds and seeds of an experiment, and which metrics count."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from mmjax.config import AtLeast, Within
from mmjax.errors import nearest

Share = Annotated[float, AtLeast(0)]
Metrics = dict[str, dict[str, Share]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubsetsConfig:
    """Which table of subsets is held against the ceilings of the dataset.

    Attributes:
      split: of the recipe's `evaluate.splits`.
      metric: an accuracy, like "answer/accuracy".
      within: how far below its ceiling each subset may be.
    """

    split: str
    metric: str
    within: Share


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """One of several recipes that an experiment compares. What it leaves out is that of the experiment.

    Attributes:
      config, metrics, subsets: as in `ReproductionConfig`.
      overrides: added to those of the experiment.
      folds: {fold: overrides on that one alone}, as where something was chosen for each fold by itself.
    """

    config: str | None = None
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    folds: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    metrics: Metrics | None = None
    subsets: SubsetsConfig | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReproductionConfig:
    """What experiment.json holds.

    Attributes:
      question: what the experiment answers.
      config: the recipe and its argument, "configs/NAME.py:ARGUMENT", seen from the folder that holds `experiments/`.
      overrides: {key of the recipe, like "train.steps": value}.
      seeds: of the recorded runs.
      metrics: {split: {metric: how far the mean over seeds may be from the recorded one}}.
      subsets: the table of subsets, if there is one.
      arms: {name: what is different}, for experiments that compare recipes.
      folds: {name: overrides}; each arm runs on each, for cross-validation.
    """

    question: str
    seeds: tuple[Annotated[int, Within(0, 2**32 - 1)], ...]
    config: str | None = None
    metrics: Metrics = dataclasses.field(default_factory=dict)
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    subsets: SubsetsConfig | None = None
    arms: dict[str, ArmConfig] = dataclasses.field(default_factory=dict)
    folds: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not self.seeds or not all(cell.metrics for cell in self.cells):
            raise ValueError("seeds or metrics are empty; name at least one of each")
        if not all(cell.config for cell in self.cells):
            raise ValueError("config is missing; name a recipe, like 'configs/digits.py'")
        if self.folds and not self.arms:
            raise ValueError("folds are given without arms; name at least one arm")
        for name, arm in self.arms.items():
            for fold in arm.folds:
                if fold not in self.folds:
                    raise ValueError(f"the arm {name!r} changes the fold {fold!r}; {nearest(fold, self.folds)}")
        for name in (*self.arms, *self.folds):
            if not name or set(name) & set("/\\") or name.startswith("."):
                raise ValueError(f"the name {name!r} cannot be a folder's; give a plain one")

    @property
    def cells(self) -> list[Cell]:
        """Every arm on every fold."""
        return [
            Cell(
                arm=name,
                fold=fold,
                config=arm.config or self.config or "",
                overrides={**self.overrides, **arm.overrides, **changes, **arm.folds.get(fold, {})},
                metrics=self.metrics if arm.metrics is None else arm.metrics,
                subsets=arm.subsets or self.subsets,
            )
            for name, arm in (self.arms or {"": ArmConfig()}).items()
            for fold, changes in (self.folds or {"": {}}).items()
        ]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One arm on one fold, which is trained once for each seed. Both names are "" in an experiment without arms."""

    arm: str
    fold: str
    config: str
    overrides: dict[str, Any]
    metrics: Metrics
    subsets: SubsetsConfig | None

    @property
    def name(self) -> str:
        return " / ".join(part for part in (self.arm, self.fold) if part)

    @property
    def primary_metric(self) -> tuple[str, str]:
        """The first split and metric that count."""
        return next((split, name) for split, metrics in self.metrics.items() for name in metrics)
