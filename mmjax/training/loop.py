"""Training loop: next batch, train step, hooks. Everything else in a run is a hook."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from mmjax.errors import Interrupted, Preempted
from mmjax.tokens import Batch
from mmjax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class StopReason:
    """Reason to end a run before its last step.

    Attributes:
      message: description for the terminal.
      error: exception that ends the process after the last checkpoint; None if the run is complete and is evaluated.
    """

    message: str
    error: type[Preempted] | type[Interrupted] | None = None


class Hook:
    """Base class of loop hooks, one of the four plug points.

    Hooks run in list order, which matters: evaluation comes before the checkpoint that records its metrics.
    """

    def start(self, loop: Loop) -> None:
        """Called before the first step of this process, with the restored state."""

    def after_step(self, loop: Loop) -> None:
        """Called after each step. `loop.state` is readable until the next step, which donates its buffers."""

    def finish(self, loop: Loop) -> None:
        """Called after the last step, also after an early stop or an exception."""


class Loop:
    """Training loop from the restored data step to `steps`.

    Attributes:
      state: current train state.
      step: number of batches seen; equals `state.data_step` but is known without waiting for the device.
      steps: data step at which the run ends.
      latest_metrics: newest metrics row by split, set by hooks. Splits other than "train" are present only after a step
        that evaluated them.
      stop_reason: reason to end the run after the current step, set by a hook; None to continue.
    """

    def __init__(self, state: TrainState, steps: int, hooks: Sequence[Hook]):
        self.state, self.steps, self.hooks = state, steps, hooks
        self.step = int(state.data_step)
        self.latest_metrics: dict[str, dict[str, float]] = {}
        self.stop_reason: StopReason | None = None

    @property
    def done(self) -> bool:
        """True once all steps are done."""
        return self.step >= self.steps

    def run(self, train_step: Callable[[TrainState, Batch], TrainState], batches: Iterator[Batch]) -> TrainState:
        """Trains until the last step or until a hook stops the run; `batches` must start at data step `self.step`."""
        for hook in self.hooks:
            hook.start(self)
        try:
            while not self.done and self.stop_reason is None:
                self.state = train_step(self.state, next(batches))
                self.step += 1
                for hook in self.hooks:
                    hook.after_step(self)
        finally:
            for hook in self.hooks:
                hook.finish(self)
        return self.state
