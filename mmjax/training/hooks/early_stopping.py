"""Early stopping: a hook that ends the run when a validation metric has stopped improving (Prechelt, 1998)."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Literal

from mmjax.config import Count, Formerly
from mmjax.errors import UserError
from mmjax.training.loop import Hook, Loop


class EarlyStopping(Hook):
    """Stops after `patience` evaluations in a row without a new best value.

    A resumed run reads its history from the rows of metrics that were kept, so it stops where it would have.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """When to stop.

        Attributes:
          metric: of the validation split, for example "answer/accuracy".
          patience: evaluations in a row without a new best value.
          mode: whether the largest or the smallest value is best.
          min_delta: the smallest change that counts.
        """

        metric: str
        patience: Count = 5
        mode: Annotated[Literal["max", "min"], Formerly("best_is")] = "max"
        min_delta: Annotated[float, Formerly("least")] = 0.0

    def __init__(self, config: Config, history: list[dict]):
        self.config, self.history = config, history
        self.best, self.waited, self.seen = -math.inf, 0, 0

    def _add(self, row: dict) -> None:
        if self.config.metric not in row:
            raise UserError(
                "train.hooks",
                f"no validation metric is named {self.config.metric!r}",
                "set evaluate.every and a metric",
            )
        # The log writes what is not finite as null; neither is an improvement.
        measured = row[self.config.metric]
        value = (math.nan if measured is None else measured) * (1 if self.config.mode == "max" else -1)
        if value > self.best + self.config.min_delta:
            self.best, self.waited = value, 0
        else:
            self.waited += 1

    def start(self, loop: Loop) -> None:
        for row in self.history:
            if row["split"] == "validation" and row["step"] <= loop.step:
                self._add(row)
        self._stop_if_due(loop)
        self.latest = loop.latest.get("validation")

    def after_step(self, loop: Loop) -> None:
        row = loop.latest.get("validation")
        if row is None or row is self.latest:
            return
        self.latest = row
        self._add(row)
        self._stop_if_due(loop)

    def _stop_if_due(self, loop: Loop) -> None:
        if self.waited >= self.config.patience:
            loop.stop = f"{self.config.metric} has not improved for {self.waited} evaluations"
