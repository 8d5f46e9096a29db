"""Hooks for the watchdog: the step of this process, and the phase of other hooks."""

from __future__ import annotations

from mmjax.processes import Watchdog
from mmjax.training.loop import Hook, Loop


class WatchdogHook(Hook):
    """Reports this process's step to the watchdog."""

    def __init__(self, watchdog: Watchdog):
        self.watchdog = watchdog

    def after_step(self, loop: Loop) -> None:
        self.watchdog.set_step(loop.step)


class PhaseHook(Hook):
    """Runs another hook in a phase of its own, for the time limits of `watchdog`.

    Args:
      hook: the other hook.
      phase: name of the phase.
      watchdog: watchdog of this process.
    """

    def __init__(self, hook: Hook, phase: str, watchdog: Watchdog):
        self.hook, self.phase, self.phases = hook, phase, watchdog.phases

    def start(self, loop: Loop) -> None:
        with self.phases.phase(self.phase):
            self.hook.start(loop)

    def after_step(self, loop: Loop) -> None:
        with self.phases.phase(self.phase):
            self.hook.after_step(loop)

    def finish(self, loop: Loop) -> None:
        with self.phases.phase(self.phase):
            self.hook.finish(loop)
