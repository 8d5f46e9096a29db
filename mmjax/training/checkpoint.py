"""Checkpoints with Orbax: the whole state in one piece, with what `predict` needs beside it."""

from __future__ import annotations

import dataclasses
import pathlib
import signal
from collections.abc import Callable
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
    """The section `checkpoint`.

    Attributes:
      every: data steps from one checkpoint to the next; the last step is saved always.
      keep: how many of the newest stay.
      best: a metric of the validation split, like "answer/accuracy"; the checkpoint where it was best stays as well.
      mode: whether the largest or the smallest value is best.
    """

    every: Count = 1000
    keep: Count = 2
    best: str | None = None
    mode: Annotated[Literal["max", "min"], Formerly("best_is")] = "max"


class Checkpoints:
    """The checkpoints of a workdir. Each appears under its final name only when it is whole.

    Parameters, optimiser, average, steps and metrics' window are one item, so that no crash can part them; the data's
    place is the data step, since a batch is a function of it.
    """

    def __init__(self, workdir: pathlib.Path, config: CheckpointConfig, *, read_only: bool = False):
        self.config, self.folder = config, workdir.absolute() / "checkpoints"
        keep: list[Any] = [checkpoint_managers.LatestN(config.keep)]
        if config.best:
            keep.append(
                checkpoint_managers.BestN(
                    get_metric_fn=lambda metrics: metrics[config.best],
                    reverse=config.mode == "min",
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        verbosity = logging.get_verbosity()
        try:
            if read_only:
                # Orbax warns of what is asked for here, and standard error is for what is wrong.
                logging.set_verbosity(logging.ERROR)
            options = ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(keep),
                # Without it Orbax leaves the metrics out of the checkpoint.
                best_fn=(lambda metrics: metrics[config.best]) if config.best else None,
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
        return self.manager.latest_step()

    def best(self) -> int | None:
        """The step whose recorded validation metric is best, or None."""
        if not self.config.best or not self.manager.all_steps():
            return None
        found = {}
        for step in self.manager.all_steps():
            metrics = self.manager.metrics(step)
            if metrics:
                found[step] = metrics[self.config.best]
        sign = 1 if self.config.mode == "max" else -1
        return max(found, key=lambda step: sign * found[step]) if found else None

    def save(self, step: int, state: TrainState, metrics: dict[str, float] | None = None) -> None:
        """Starts to save and returns once the arrays are copied; a step that is there already is left alone."""
        if step in self.manager.all_steps():
            return
        if self.config.best and metrics is not None and self.config.best not in metrics:
            known = ", ".join(name for name in metrics if not name.startswith("perf/"))
            raise UserError("checkpoint.best", f"no metric is named {self.config.best!r}", f"choose one of {known}")
        self.manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics if self.config.best else None)

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """Restores onto the shardings of `abstract`, whatever mesh the checkpoint was written from."""
        return self.manager.restore(step, args=ocp.args.StandardRestore(abstract))

    def preemption_service(self) -> bool:
        """Whether JAX's preemption service runs; without it Orbax never reports a preemption."""
        from jax._src import distributed

        return distributed.global_state.preemption_sync_manager is not None

    def wait(self) -> None:
        self.manager.wait_until_finished()

    def close(self) -> None:
        self.manager.close()


class CheckpointHook(Hook):
    """Saves every so many steps, at the end, and when the machine is about to be taken away.

    Args:
      before: called before a checkpoint begins, to bring files that belong to it onto the disk.
    """

    def __init__(self, checkpoints: Checkpoints, before: Callable[[], None]):
        self.checkpoints, self.before = checkpoints, before
        self.terminated = False
        self.handler: Any = None
        self.watched = False

    def start(self, loop: Loop) -> None:
        def on_signal(number, frame):
            self.terminated = True

        # JAX's preemption service has its own handler of the signal, which ours would replace.
        self.watched = not self.checkpoints.preemption_service()
        if self.watched:
            self.handler = signal.signal(signal.SIGTERM, on_signal)

    def after_step(self, loop: Loop) -> None:
        # Several hosts agree through the preemption service, where it runs; one host knows by itself.
        if self.checkpoints.manager.reached_preemption(loop.step) or (self.terminated and jax.process_count() == 1):
            loop.stop = "the machine is being taken away"
        if loop.step % self.checkpoints.config.every == 0 or loop.done or loop.stop:
            self.before()
            self.checkpoints.save(loop.step, loop.state, loop.latest.get("validation"))

    def finish(self, loop: Loop) -> None:
        self.checkpoints.wait()
        if self.watched:
            signal.signal(signal.SIGTERM, self.handler)
