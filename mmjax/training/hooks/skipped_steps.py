"""Guard against skipped steps: ends the run, or rolls it back, after too many in a row.

The train step skips updates whose gradient is not finite (`Trainer.step`). A single skipped step is harmless; many in
a row mean that the parameters or the data are broken.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from rich.console import Console

from mmjax.errors import RunError
from mmjax.training.checkpoint import Checkpoints
from mmjax.training.loop import Hook, Loop
from mmjax.training.state import TrainState

# Delay in steps before a step's counter is read, so that the device has later steps queued and does not idle.
_LAG = 2
_MAX_LISTED_IDS = 8


class SkippedStepsHook(Hook):
    """Fails after `max_skipped` consecutive skipped steps, or at the end if more than half of all steps were skipped.

    With `rollback`, it restores the newest checkpoint from before the first of these steps instead, and training
    continues with the next batch. If a restored checkpoint leads to skipped steps only, the next older one is restored.
    The run fails if none is left.

    Args:
      max_skipped: number of consecutive skipped steps at which the hook acts.
      rollback: restore a checkpoint instead of failing.
      checkpoints: checkpoints of the run.
      abstract: abstract train state, the target of a restore.
      ids_at: function from a data step to the ids of its examples.
      console: output of messages.
    """

    def __init__(
        self,
        max_skipped: int,
        rollback: bool,
        checkpoints: Checkpoints,
        abstract: TrainState,
        ids_at: Callable[[int], list[int]],
        console: Console,
    ):
        self.max_skipped, self.rollback = max_skipped, rollback
        self.checkpoints, self.abstract, self.ids_at, self.console = checkpoints, abstract, ids_at, console
        self.rejected: set[int] = set()
        self.resumed_at, self.target = -1, -1
        self.first_skipped: int | None = None
        self.skipped = 0
        # Copy the step counter, because the next step donates the buffers of the state.
        self._copy = jax.jit(jnp.copy, out_shardings=abstract.step.sharding)

    def start(self, loop: Loop) -> None:
        self.first_step = loop.step
        self._reset(loop)

    def after_step(self, loop: Loop) -> None:
        self.pending.append((loop.step - 1, self._copy(loop.state.step)))
        while self.pending and (len(self.pending) > _LAG or loop.done):
            data_step, updates = self.pending.popleft()
            self._count(loop, data_step, int(updates))
        steps = loop.step - self.first_step
        if loop.done and self.first_skipped is not None and 2 * self.skipped > steps:
            raise RunError(f"{self.skipped} of {steps} steps were skipped, {self._describe(self.first_skipped)}")

    def _reset(self, loop: Loop) -> None:
        self.updates, self.streak = int(loop.state.step), 0
        self.pending: collections.deque[tuple[int, jax.Array]] = collections.deque()

    def _count(self, loop: Loop, data_step: int, updates: int) -> None:
        if updates > self.updates:
            self.updates, self.streak = updates, 0
            return
        self.skipped, self.streak = self.skipped + 1, self.streak + 1
        if self.first_skipped is None:
            self.first_skipped = data_step
        if self.streak < self.max_skipped:
            return
        first = data_step - self.streak + 1
        problem = f"{self.streak} steps in a row were skipped, {self._describe(first)}"
        if not self.rollback:
            raise RunError(problem)
        self._roll_back(loop, first, problem)

    def _describe(self, data_step: int) -> str:
        """Names the first skipped step, its examples and a remedy."""
        ids = self.ids_at(data_step)
        listed = ", ".join(map(str, ids[:_MAX_LISTED_IDS])) + (", …" if len(ids) > _MAX_LISTED_IDS else "")
        return (
            f"because their gradients were not finite, first at step {data_step + 1} with the examples {listed}; "
            "lower the learning rate or the tasks' weights, or check these examples for extreme values"
        )

    def _roll_back(self, loop: Loop, first: int, problem: str) -> None:
        self.checkpoints.wait()
        saved = set(self.checkpoints.steps)
        # Checkpoints saved after a rollback but before any update hold the restored parameters again.
        last = self.target - 1 if first == self.resumed_at else first
        target = max((step for step in saved - self.rejected if step <= last), default=None)
        if target is None:
            raise RunError(f"{problem}; train.rollback found no checkpoint from before that step")
        self.rejected |= {target} | {step for step in saved if step > last}
        self.resumed_at, self.target = loop.step, target
        restored = self.checkpoints.restore(target, self.abstract)
        # Keep the position in the data, so that the run continues after the batches that were skipped.
        loop.state = dataclasses.replace(restored, data_step=loop.state.data_step, window=loop.state.window)
        self.console.print(f"step {loop.step}: {problem}; continuing from the checkpoint of step {target}")
        self._reset(loop)
