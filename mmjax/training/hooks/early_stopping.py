"""Early stopping: ends the run when a validation metric stops improving.

Prechelt, Early Stopping - But When? (1998).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Literal

from mmjax.config import Count, Formerly
from mmjax.errors import UserError
from mmjax.training.loop import Hook, Loop, StopReason


class EarlyStopping(Hook):
    """Stops the run after `patience` consecutive evaluations without improvement.

    A resumed run replays the logged metrics, so it stops at the same step as an uninterrupted run.

    Args:
      config: options.
      history: rows of `metrics.jsonl` that earlier processes of the run wrote.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `EarlyStopping`.

        Attributes:
          metric: validation metric, for example "answer/accuracy".
          patience: consecutive evaluations without improvement after which the run stops.
          mode: "max" if larger values are better, "min" if smaller.
          min_delta: minimum change that counts as an improvement.
        """

        metric: str
        patience: Count = 5
        mode: Annotated[Literal["max", "min"], Formerly("best_is")] = "max"
        min_delta: Annotated[float, Formerly("least")] = 0.0

    def __init__(self, config: Config, history: list[dict]):
        self.config, self.history = config, history
        self.best, self.waited = -math.inf, 0

    def _add(self, row: dict) -> None:
        if self.config.metric not in row:
            problem = f"no validation metric is named {self.config.metric!r}"
            raise UserError("train.hooks", problem, "set evaluate.every, and metric to a validation metric")
        value = row[self.config.metric]
        # Values that are not finite (null in the log) never count as an improvement.
        finite = value is not None and math.isfinite(value)
        value = (value if self.config.mode == "max" else -value) if finite else -math.inf
        if value > self.best + self.config.min_delta:
            self.best, self.waited = value, 0
        else:
            self.waited += 1

    def start(self, loop: Loop) -> None:
        for row in self.history:
            if row["split"] == "validation" and row["step"] <= loop.step:
                self._add(row)
        self.last_row = loop.latest_metrics.get("validation")
        if self.last_row is not None:
            self._add(self.last_row)
        self._stop_if_due(loop)

    def after_step(self, loop: Loop) -> None:
        row = loop.latest_metrics.get("validation")
        if row is None or row is self.last_row:
            return
        self.last_row = row
        self._add(row)
        self._stop_if_due(loop)

    def _stop_if_due(self, loop: Loop) -> None:
        if self.waited >= self.config.patience:
            loop.stop_reason = StopReason(f"{self.config.metric} has not improved for {self.waited} evaluations")
