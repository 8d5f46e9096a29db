"""Schema of experiment.json: recipes, arms, folds, seeds, compared metrics and their tolerances."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from mmjax.config import AtLeast, Within
from mmjax.errors import nearest

Tolerance = Annotated[float, AtLeast(0)]
Metrics = dict[str, dict[str, Tolerance]]
"""{split: {metric: tolerance}}."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubsetsConfig:
    """Options for comparing the accuracy on each subset of the inputs with its upper bound ("ceiling").

    Attributes:
      split: one of the recipe's `evaluate.splits`.
      metric: an accuracy, like "answer/accuracy".
      within: maximum distance of each subset's accuracy below its upper bound.
    """

    split: str
    metric: str
    within: Tolerance


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """One arm of a comparison. Omitted keys default to the experiment's.

    Attributes:
      config, metrics, subsets: as in `ReproductionConfig`.
      overrides: config overrides, added to the experiment's.
      folds: {fold: further overrides in this fold}, for example a hyperparameter chosen per fold.
    """

    config: str | None = None
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    folds: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    metrics: Metrics | None = None
    subsets: SubsetsConfig | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReproductionConfig:
    """Contents of experiment.json.

    Attributes:
      question: research question of the experiment.
      config: recipe and argument, "configs/NAME.py:ARGUMENT", relative to the folder that contains `experiments/`.
      overrides: {dotted config key, like "train.steps": value}.
      seeds: seeds of the recorded runs.
      metrics: {split: {metric: tolerance}}; the tolerance is the maximum absolute difference between the mean over
        seeds and the recorded mean.
      subsets: comparison of subsets of the inputs with upper bounds; None disables it.
      arms: {arm: keys that differ from the experiment's}, for experiments that compare recipes.
      folds: {fold: overrides}, for cross-validation; each arm runs on each fold.
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
            raise ValueError("seeds or metrics are empty; give at least one of each")
        if not all(cell.config for cell in self.cells):
            raise ValueError("config is missing; give a recipe, like 'configs/digits.py'")
        if self.folds and not self.arms:
            raise ValueError("folds require arms; give at least one arm")
        for name, arm in self.arms.items():
            for fold in arm.folds:
                if fold not in self.folds:
                    raise ValueError(f"arm {name!r} overrides the unknown fold {fold!r}; {nearest(fold, self.folds)}")
        for name in (*self.arms, *self.folds):
            if not name or set(name) & set("/\\") or name.startswith("."):
                raise ValueError(f"{name!r} is not a valid folder name; give one without slashes or a leading dot")

    @property
    def cells(self) -> list[Cell]:
        """All combinations of arm and fold."""
        return [
            Cell(
                arm=name,
                fold=fold,
                config=arm.config or self.config or "",
                overrides={**self.overrides, **arm.overrides, **fold_overrides, **arm.folds.get(fold, {})},
                metrics=self.metrics if arm.metrics is None else arm.metrics,
                subsets=arm.subsets or self.subsets,
            )
            for name, arm in (self.arms or {"": ArmConfig()}).items()
            for fold, fold_overrides in (self.folds or {"": {}}).items()
        ]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One arm on one fold, trained once per seed. `arm` and `fold` are "" in an experiment without arms."""

    arm: str
    fold: str
    config: str
    overrides: dict[str, Any]
    metrics: Metrics
    subsets: SubsetsConfig | None

    @property
    def name(self) -> str:
        """Display name, "ARM / FOLD"; "" without arms."""
        return " / ".join(part for part in (self.arm, self.fold) if part)

    @property
    def primary_metric(self) -> tuple[str, str]:
        """The first split and metric of `metrics`."""
        return next((split, name) for split, metrics in self.metrics.items() for name in metrics)
