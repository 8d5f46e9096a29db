"""The one loop: take a batch, make a step, call the hooks. What else happens in a run is a hook."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from mmjax.tokens import Batch
from mmjax.training.state import TrainState


class Hook:
    """Something that happens beside training: one of the four plug points.

    Hooks are called in their order, which matters: evaluation comes before the checkpoint that keeps its result.
    """

    def start(self, loop: Loop) -> None:
        """Before the first step of this process, with the restored state."""

    def after_step(self, loop: Loop) -> None:
        """After each step; `loop.state` may be read until the next step, which donates it."""

    def finish(self, loop: Loop) -> None:
        """After the last step, also when the loop was stopped early."""


class Loop:
    """A run between two points of the data.

    Attributes:
      state: the newest state.
      step: batches seen, equal to `state.data_step` without waiting for the device.
      steps: where the run ends.
      latest: the newest row of metrics of each split, set by the hooks that make them; of other splits than "train"
        only after the step at which it was measured.
      stop: set by a hook to end the run after this step, with the reason.
    """

    def __init__(self, state: TrainState, steps: int, hooks: Sequence[Hook]):
        self.state, self.steps, self.hooks = state, steps, hooks
        self.step = int(state.data_step)
        self.latest: dict[str, dict[str, float]] = {}
        self.stop: str | None = None

    @property
    def done(self) -> bool:
        return self.step >= self.steps

    def run(self, train_step: Callable[[TrainState, Batch], TrainState], batches: Iterator[Batch]) -> TrainState:
        """Trains to the end, or until a hook stops it; `batches` starts at `self.step`."""
        for hook in self.hooks:
            hook.start(self)
        try:
            while not self.done and self.stop is None:
                self.state = train_step(self.state, next(batches))
                self.step += 1
                for hook in self.hooks:
                    hook.after_step(self)
        finally:
            for hook in self.hooks:
                hook.finish(self)
        return self.state
