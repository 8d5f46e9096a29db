"""Checkpoints of the train state with Orbax."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from mmjax.config import Count, Formerly
from mmjax.errors import Interrupted, Preempted, UserError
from mmjax.host.interruption import Interruption
from mmjax.processes import agree_or_raise
from mmjax.training.checksums import tree_checksums
from mmjax.training.ledger import mark_saved, timed
from mmjax.training.loop import Hook, Loop, StopReason
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
    them. The position in the data needs no state of its own, since a batch is a function of the data step. Checksums of
    all arrays are stored in the checkpoint metadata and verified on restore.

    Raises:
      UserError: if `checkpoints` is not a folder.
    """

    def __init__(self, workdir: pathlib.Path, config: CheckpointConfig, *, read_only: bool = False):
        self.config, self.folder = config, workdir.absolute() / "checkpoints"
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError("--workdir", f"{self.folder} is not a folder", "move it away, or give another workdir")
        self.manager: Any = None
        self._problems: dict[int, str] = {}
        if not read_only:
            # Orbax reads the metrics of all checkpoints and raises if any are not JSON: rename those first.
            damaged = [step for step in self.steps if self._metrics(step) is None]
            self._problems = {step: f"checkpoint {step} has damaged metrics" for step in damaged}
            self._set_aside(damaged)
            self.manager = self._make_manager()

    def _make_manager(self) -> ocp.CheckpointManager:
        keep: list[Any] = [checkpoint_managers.LatestN(self.config.keep)]
        if self.config.best:
            keep.append(
                checkpoint_managers.BestN(
                    get_metric_fn=self._score,
                    reverse=self.config.mode == "min",
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(keep),
            # Without `best_fn` Orbax does not save the metrics.
            best_fn=self._score if self.config.best else None,
            best_mode=self.config.mode,
            save_decision_policy=checkpoint_managers.FixedIntervalPolicy(1),
            create=True,
            cleanup_tmp_directories=True,
        )
        return ocp.CheckpointManager(self.folder, options=options)

    @property
    def steps(self) -> list[int]:
        """Steps that have a checkpoint, complete or not, in ascending order."""
        if not self.folder.is_dir():
            return []
        return sorted(int(child.name) for child in self.folder.iterdir() if child.name.isdecimal())

    def best(self) -> int | None:
        """The step with the best validation metric, or None."""
        if not self.config.best:
            return None
        metrics = {step: self._metrics(step) for step in self.steps}
        scores = {step: self._score(row) for step, row in metrics.items() if row}
        scores = {step: score for step, score in scores.items() if math.isfinite(score)}
        best = max if self.config.mode == "max" else min
        return best(scores, key=lambda step: scores[step], default=None)

    def _score(self, metrics: Mapping[str, float | None]) -> float:
        """The metric `checkpoint.best`; the worst possible score if it is not finite (stored as null)."""
        score = metrics.get(self.config.best or "")
        if score is not None and math.isfinite(score):
            return score
        return -math.inf if self.config.mode == "max" else math.inf

    def _metrics(self, step: int) -> Mapping[str, float | None] | None:
        """Reads the metrics of a checkpoint: {} if it has none, None if they are damaged."""
        folder = self.folder / str(step)
        if not (folder / "metrics" / "metrics").exists():
            return {}
        try:
            metrics = json.loads((folder / "metrics" / "metrics").read_text())
            copy = self._verified(step)["metrics"]
        except (KeyError, OSError, TypeError, ValueError):
            return None
        return metrics if isinstance(metrics, dict) and metrics == copy else None

    def _verified(self, step: int) -> dict[str, Any]:
        """Reads the checksums and the copy of the metrics that `save` stored."""
        return json.loads((self.folder / str(step) / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]

    @timed("checkpoint")
    def save(self, step: int, state: TrainState, metrics: dict[str, float] | None = None) -> None:
        """Starts an asynchronous save and returns once the arrays are copied. A step that is already saved is skipped.

        A checkpoint whose metrics lack `checkpoint.best` is never the best.
        """
        if not self.folder.is_dir():
            logging.warning("%s was deleted, and the older checkpoints with it", self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            self.manager.reload()
        if step in self.manager.all_steps():
            return
        saved = None
        if self.config.best and metrics is not None:
            saved = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        verified = {"checksums": tree_checksums(state), "metrics": saved}
        self.manager.save(step, args=ocp.args.StandardSave(state), metrics=saved, custom_metadata=verified)
        mark_saved(step)

    @timed("restore")
    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """Restores a step with the shardings of `abstract`, which may differ from those at saving.

        Raises:
          UserError: in all processes, if the checkpoint is incomplete or one of its arrays differs from its checksum.
        """
        with agree_or_raise(f"the restore of checkpoint {step}"), _log_level(logging.FATAL):
            try:
                saved = self._verified(step)["checksums"]
                with ocp.StandardCheckpointer() as checkpointer:
                    state = checkpointer.restore(self.folder / str(step) / "default", abstract)
            except (MemoryError, jax.errors.JaxRuntimeError):
                raise
            except Exception as error:
                # Orbax, TensorStore and the file system raise many types of exceptions.
                reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
                raise self._damaged(step, reason) from None
        # Compute checksums only after all processes have restored, because all must take part in each checksum.
        found = tree_checksums(state)
        if saved != found:
            changed = next((name for name in found if saved.get(name) != found[name]), "the structure")
            raise self._damaged(step, f"{changed.removeprefix('.')} differs from its checksum")
        return state

    def _damaged(self, step: int, reason: str) -> UserError:
        return UserError(f"checkpoint {step}", f"is damaged or incomplete ({reason})", "restore it from a copy")

    def restore_newest(
        self, abstract: TrainState, report: Callable[[str], None], *, best: bool = False
    ) -> tuple[TrainState, int] | None:
        """Restores the newest intact checkpoint.

        Damaged ones are renamed to `STEP.damaged`, unless read-only, so that the run can save these steps again.

        Args:
          abstract: shapes, dtypes and shardings of the state.
          report: receives one line that names the damaged checkpoints and the restored one.
          best: try the checkpoint with the best validation metric first.

        Returns:
          state, step; None if there is no checkpoint.

        Raises:
          UserError: if all checkpoints are damaged.
        """
        steps, problems, renamed = self.steps[::-1], dict(self._problems), set(self._problems)
        if best and (preferred := self.best()) is not None:
            steps = [preferred, *(step for step in steps if step != preferred)]
        for step in steps:
            try:
                state = self.restore(step, abstract)
            except UserError as error:
                problems[step] = f"{error.where} {error.problem}"
                continue
            if problems:
                report(f"warning: {'; '.join(problems.values())}: using checkpoint {step} instead")
                self._problems = {}
                if self.manager is not None:
                    self._set_aside([damaged for damaged in problems if damaged not in renamed])
            return state, step
        if problems:
            remedy = "restore one from a copy, or move the folder away to start from the first step"
            raise UserError("--workdir", f"{self.folder}: {'; '.join(problems.values())}", remedy)
        return None

    def _set_aside(self, steps: list[int]) -> None:
        if not steps:
            return
        with agree_or_raise("the renaming of damaged checkpoints"):
            if jax.process_index() == 0:
                for step in steps:
                    target = self.folder / f"{step}.damaged"
                    shutil.rmtree(target, ignore_errors=True)
                    os.rename(self.folder / str(step), target)
        if self.manager is not None:
            self.manager.reload()

    def preemption_service(self) -> bool:
        """True if JAX's preemption service is running; without it Orbax never reports a preemption."""
        from jax._src import distributed

        return distributed.global_state.preemption_sync_manager is not None

    def delete(self, step: int) -> None:
        """Deletes the checkpoint of a step."""
        self.manager.delete(step)

    @timed("checkpoint")
    def wait(self) -> None:
        """Blocks until pending saves are committed."""
        self.manager.wait_until_finished()

    @timed("checkpoint")
    def close(self) -> None:
        """Closes the Orbax manager, after pending saves are committed."""
        if self.manager is not None:
            self.manager.close()


@contextlib.contextmanager
def _log_level(level: int) -> Iterator[None]:
    """Sets absl's log level within a block."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(level)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


class CheckpointHook(Hook):
    """Saves a checkpoint at the configured interval, at the end of the run, and when a signal asks the run to stop.

    Args:
      checkpoints: destination.
      before_save: called before each save, to flush files that must not lag behind the checkpoint.
      interruption: signals that this process receives.
    """

    def __init__(self, checkpoints: Checkpoints, before_save: Callable[[], None], interruption: Interruption):
        self.checkpoints, self.before_save, self.interruption = checkpoints, before_save, interruption

    def start(self, loop: Loop) -> None:
        self._add_metrics(loop)
        if jax.process_count() == 1 or self.checkpoints.preemption_service():
            # Without the service, several processes cannot agree on a step to save.
            self.interruption.position = lambda: (loop.step, max(self.checkpoints.steps, default=0))

    def _add_metrics(self, loop: Loop) -> None:
        """Saves the restored checkpoint again with its validation metrics, if a signal had stopped their evaluation."""
        metrics = loop.latest_metrics.get("validation")
        if metrics is not None and self.checkpoints.config.best and loop.step in self.checkpoints.steps:
            self.checkpoints.delete(loop.step)
            self.checkpoints.save(loop.step, loop.state, metrics)

    def after_step(self, loop: Loop) -> None:
        # Several processes agree on a step through the preemption service; a signal suffices for a single one.
        if self.checkpoints.manager.reached_preemption(loop.step) or jax.process_count() == 1:
            self._stop_if_requested(loop)
        if loop.step % self.checkpoints.config.every == 0 or loop.done or loop.stop_reason:
            jax.block_until_ready(loop.state)  # the wait for queued steps is not a part of the save
            self.before_save()
            self.checkpoints.save(loop.step, loop.state, loop.latest_metrics.get("validation"))

    def _stop_if_requested(self, loop: Loop) -> None:
        requested = self.interruption.requested
        if requested == signal.SIGINT:
            loop.stop_reason = StopReason("interrupted", Interrupted)
        elif requested is not None or jax.process_count() > 1:
            loop.stop_reason = StopReason("the machine is being preempted", Preempted)

    def finish(self, loop: Loop) -> None:
        self.checkpoints.wait()
        if jax.process_count() == 1:
            self._stop_if_requested(loop)  # a signal during the last save
