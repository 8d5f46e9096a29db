"""Detection of stalls within one process: each phase of the training loop has a time limit."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, TypeVar

from mmjax.config import AtLeast
from mmjax.host.child_processes import stopped_children

T = TypeVar("T")
Seconds = Annotated[float, AtLeast(0)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StallConfig:
    """The config section `watchdog`: time limits of the phases of training, in seconds; 0 disables one.

    A run that exceeds a limit prints the stacks of all its threads and exits with code 3.

    Attributes:
      input: waiting for the next training batch.
      step: a train step, with its compilation, logging and hooks.
      evaluation: a batch of an evaluation, with its compilation.
      save: writing a checkpoint.
    """

    input: Seconds = 1800.0
    step: Seconds = 3600.0
    evaluation: Seconds = 3600.0
    save: Seconds = 3600.0


class ActiveClock:
    """Monotonic clock in seconds that leaves out pauses of this process (SIGSTOP, a suspended machine).

    Args:
      period: seconds between calls; the clock advances by at most 3 periods per call.
      clock: returns seconds.
    """

    def __init__(self, period: float, clock: Callable[[], float] = time.monotonic):
        self.period, self._clock = period, clock
        self._last, self._total = clock(), 0.0

    def __call__(self) -> float:
        now = self._clock()
        self._total += min(now - self._last, 3 * self.period)
        self._last = now
        return self._total


class Phases:
    """Current phase of this process, and the time since its last progress.

    The training loop enters phases; another thread calls `advance` periodically.

    Args:
      limits: {phase: maximum seconds without progress}; 0 or a missing phase has no limit.
      clock: returns seconds.
    """

    def __init__(self, limits: dict[str, float], clock: ActiveClock):
        self.limits, self.clock = limits, clock
        self._name: str | None = None
        self._progress = object()
        self._seen, self._since = self._progress, clock()

    def enter(self, name: str | None) -> None:
        """Starts a phase; None has no limit."""
        self._name = name
        self.advance()

    def advance(self) -> None:
        """Notes progress within the phase, for example a batch of an evaluation."""
        self._progress = object()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Enters a phase for a block, then the earlier one again."""
        before = self._name
        self.enter(name)
        try:
            yield
        finally:
            self.enter(before)

    def batches(self, batches: Iterable[T]) -> Iterator[T]:
        """Yields `batches`; waits for them in the phase "input" and leaves the rest to the phase "step"."""
        iterator = iter(batches)
        while True:
            self.enter("input")
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.enter("step")
            yield batch

    def check(self) -> str | None:
        """Returns a message if the current phase exceeds its limit, else None. Call it periodically."""
        now = self.clock()
        # The clock runs in the calling thread only, so progress counts from the first check that sees it.
        name, progress = self._name, self._progress
        if progress is not self._seen:
            self._seen, self._since = progress, now
        limit = self.limits.get(name, 0) if name else 0
        if not limit or now - self._since <= limit:
            return None
        stopped = stopped_children()
        workers = f"; data-loading process {', '.join(map(str, stopped))} is stopped by a signal" if stopped else ""
        return f"no progress in {name} for {now - self._since:.0f} s, the limit watchdog.{name} is {limit:g} s{workers}"
