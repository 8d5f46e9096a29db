"""Checkpoints of the train state with Orbax."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import signal
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from mmjax.config import Count, Formerly
from mmjax.errors import UserError
from mmjax.training.loop import Hook, Loop
from mmjax.training.state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """The config section `checkpoint`.

    Attributes:
      every: checkpoint interval in data steps; the last step is always saved.
      keep: number of latest checkpoints to keep.
      best: validation metric, for example "answer/accuracy", whose best checkpoint is kept too; NaN is never best.
      mode: "max" if larger values of `best` are better, "min" if smaller.
    """

    every: Count = 1000
    keep: Count = 2
    best: str | None = None
    mode: Annotated[Literal["max", "min"], Formerly("best_is")] = "max"


class Checkpoints:
    """The checkpoints of a workdir, committed atomically: a checkpoint gets its final name once it is complete.

    Parameters, optimiser state, EMA, step counters and metric window are one Orbax item, so a crash cannot separate
    them. The position in the data is the data step alone, since a batch is a function of it.
    """

    def __init__(self, workdir: pathlib.Path, config: CheckpointConfig, *, read_only: bool = False):
        self.config, self.folder = config, workdir.absolute() / "checkpoints"
        keep: list[Any] = [checkpoint_managers.LatestN(config.keep)]
        if config.best:
            keep.append(
                checkpoint_managers.BestN(
                    get_metric_fn=self._score,
                    reverse=config.mode == "min",
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        verbosity = logging.get_verbosity()
        try:
            if read_only:
                # Orbax logs a warning for options that are set on purpose here.
                logging.set_verbosity(logging.ERROR)
            options = ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(keep),
                # Without `best_fn` Orbax does not save the metrics.
                best_fn=self._score if config.best else None,
                best_mode=config.mode,
                save_decision_policy=checkpoint_managers.FixedIntervalPolicy(1),
                read_only=read_only,
                create=not read_only,
                cleanup_tmp_directories=not read_only,
            )
            self.manager = ocp.CheckpointManager(self.folder, options=options)
        finally:
            logging.set_verbosity(verbosity)

    @property
    def latest(self) -> int | None:
        """The newest step, or None."""
        return self.manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """The saved steps, oldest first."""
        return sorted(self.manager.all_steps())

    def best(self) -> int | None:
        """The step with the best validation metric, or None."""
        if not self.config.best or not self.manager.all_steps():
            return None
        metrics = {step: self.manager.metrics(step) for step in self.manager.all_steps()}
        scores = {step: self._score(row) for step, row in metrics.items() if row}
        scores = {step: score for step, score in scores.items() if math.isfinite(score)}
        best = max if self.config.mode == "max" else min
        return best(scores, key=lambda step: scores[step], default=None)

    def _score(self, metrics: Mapping[str, float | None]) -> float:
        """The metric `checkpoint.best`; the worst possible score if it is not finite (stored as null)."""
        score = metrics[self.config.best or ""]
        if score is not None and math.isfinite(score):
            return score
        return -math.inf if self.config.mode == "max" else math.inf

    def save(self, step: int, state: TrainState, metrics: dict[str, float] | None = None) -> None:
        """Starts an asynchronous save and returns once the arrays are copied. A step that is already saved is skipped.

        Raises:
          UserError: if `metrics` lacks the metric `checkpoint.best`.
        """
        if step in self.manager.all_steps():
            return
        if self.config.best and metrics is not None and self.config.best not in metrics:
            known = ", ".join(name for name in metrics if not name.startswith("perf/"))
            raise UserError("checkpoint.best", f"no metric is named {self.config.best!r}", f"choose one of {known}")
        saved = None
        if self.config.best and metrics is not None:
            saved = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self.manager.save(step, args=ocp.args.StandardSave(state), metrics=saved)

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """Restores a step with the shardings of `abstract`, which may differ from those at saving."""
        return self.manager.restore(step, args=ocp.args.StandardRestore(abstract))

    def preemption_service(self) -> bool:
        """True if JAX's preemption service is running; without it Orbax never reports a preemption."""
        from jax._src import distributed

        return distributed.global_state.preemption_sync_manager is not None

    def wait(self) -> None:
        """Blocks until pending saves are committed."""
        self.manager.wait_until_finished()

    def close(self) -> None:
        """Closes the Orbax manager."""
        self.manager.close()


class CheckpointHook(Hook):
    """Saves a checkpoint at the configured interval, at the end of the run, and on preemption.

    Args:
      checkpoints: destination.
      before_save: called before each save, to flush files that must not lag behind the checkpoint.
    """

    def __init__(self, checkpoints: Checkpoints, before_save: Callable[[], None]):
        self.checkpoints, self.before_save = checkpoints, before_save
        self.sigterm_received = False
        self.previous_handler: Any = None
        self.handles_sigterm = False

    def start(self, loop: Loop) -> None:
        def on_sigterm(signum, frame):
            self.sigterm_received = True

        # JAX's preemption service installs its own SIGTERM handler, which must not be replaced.
        self.handles_sigterm = not self.checkpoints.preemption_service()
        if self.handles_sigterm:
            self.previous_handler = signal.signal(signal.SIGTERM, on_sigterm)

    def after_step(self, loop: Loop) -> None:
        # Several processes agree on a step through the preemption service; SIGTERM suffices for a single one.
        preempted = self.checkpoints.manager.reached_preemption(loop.step)
        if preempted or (self.sigterm_received and jax.process_count() == 1):
            loop.stop_reason = "the machine is being preempted"
        if loop.step % self.checkpoints.config.every == 0 or loop.done or loop.stop_reason:
            self.before_save()
            self.checkpoints.save(loop.step, loop.state, loop.latest_metrics.get("validation"))

    def finish(self, loop: Loop) -> None:
        self.checkpoints.wait()
        if self.handles_sigterm:
            signal.signal(signal.SIGTERM, self.previous_handler)
