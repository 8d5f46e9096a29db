"""Detection of lost and late processes from the heartbeats of all processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from mmjax.errors import ExitCode

INPUT_ERROR_SECONDS = 10.0
"""Seconds that a process may go on after another one has exited because of invalid input: usually all find it."""


class HeartbeatMonitor:
    """Detects processes that failed, never started, fell silent or stalled, from the latest heartbeat of each.

    Measures silence with its own clock, because clocks of hosts differ.

    Args:
      count: number of processes.
      heartbeat_timeout: maximum seconds between heartbeats of a process.
      stall: maximum seconds that a process may stay at a step after others have passed it.
      clock: returns seconds. It should leave out pauses of this process, which delay its view of the others.

    Attributes:
      failed: processes that the last check found.
      exit_code: exit code for the others: that of a process that failed by itself, else `ExitCode.RESTART`.
    """

    def __init__(self, count: int, heartbeat_timeout: float, stall: float, clock: Callable[[], float] = time.monotonic):
        self.count, self.heartbeat_timeout, self.stall, self.clock = count, heartbeat_timeout, stall, clock
        self.started = clock()
        self.failed: set[int] = set()
        self.exit_code = ExitCode.RESTART
        self.last_heartbeat: dict[int, tuple[Any, float]] = {}
        self.last_step: dict[int, tuple[int, float]] = {}
        self.last_ended: dict[int, tuple[str, float]] = {}
        self.on_time: dict[int, float] = {}

    def check(self, heartbeats: Mapping[int, Mapping[str, Any]]) -> str | None:
        """Returns a message that names the failed processes, or None. Sets `failed` and `exit_code`.

        Args:
          heartbeats: latest heartbeat of each process, `{process: {"host", "step", "time", "ended"}}`, with the exit
            "code" of a process that ended.
        """
        now = self.clock()
        max_step = max((heartbeat["step"] for heartbeat in heartbeats.values()), default=-1)
        for process, heartbeat in heartbeats.items():
            if heartbeat["step"] == max_step or self.last_step.get(process, (None,))[0] != heartbeat["step"]:
                self.on_time[process] = now
            keys = ((self.last_heartbeat, "time"), (self.last_step, "step"), (self.last_ended, "ended"))
            for last, key in keys:
                if process not in last or last[process][0] != heartbeat[key]:
                    last[process] = (heartbeat[key], now)
        problems = {
            process: problem
            for process in range(self.count)
            if (problem := self._problem(process, heartbeats.get(process), now, max_step))
        }
        self.failed = set(problems)
        codes = [heartbeats[process].get("code") for process in problems if process in heartbeats]
        self.exit_code = next((ExitCode(code) for code in codes if code is not None), ExitCode.RESTART)
        return "; ".join(list(problems.values())[:8]) or None

    def _problem(self, process: int, heartbeat: Mapping[str, Any] | None, now: float, max_step: int) -> str | None:
        if heartbeat is None:
            late = now - self.started > self.heartbeat_timeout
            return f"process {process} of {self.count} did not start" if late else None
        if heartbeat["ended"] == "done":
            return None
        name = f"process {process} of {self.count} on {heartbeat['host']}, at step {heartbeat['step']},"
        if heartbeat["ended"]:
            expected = heartbeat.get("code") == ExitCode.INVALID_INPUT
            if expected and now - self.last_ended[process][1] <= INPUT_ERROR_SECONDS:
                return None
            return f"{name} failed: {heartbeat['ended']}"
        silent, stuck = (now - last[process][1] for last in (self.last_heartbeat, self.last_step))
        if silent > self.heartbeat_timeout:
            return f"{name} sent no heartbeat for {silent:.0f} s: the process or its host is down"
        # Late means behind the others: a pause that all share, such as a long evaluation, does not count.
        if heartbeat["step"] < max_step and now - self.on_time[process] > self.stall:
            return f"{name} has stalled for {stuck:.0f} s, while others are at step {max_step}"
        return None
