"""Watchdog: if a process dies or stalls, all exit with code 3 within a bounded time and name it.

Without it, the other processes would wait in a collective forever (TPU), or fail with a network error that does not
name the dead one. Every process sends a heartbeat with its step every few seconds; process 0 checks them. Messages go
through the coordinator of `jax.distributed` and need no device. Each process also limits the time of its own phases;
see `mmjax.processes.stall`.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import faulthandler
import json
import math
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from mmjax.errors import ExitCode, Preempted, Restart, RunError, UserError
from mmjax.host.ending import end_process
from mmjax.processes.heartbeats import INPUT_ERROR_SECONDS, HeartbeatMonitor
from mmjax.processes.stall import ActiveClock, Phases, StallConfig

START_TIMEOUT = 20.0
"""Seconds without a heartbeat after which a process counts as dead, until the config is read."""
START_PERIOD = 2.0
"""Seconds between heartbeats until then."""

_REMEDY = "start the same command again, with as many processes as are available, to resume from the newest checkpoint"
_REMEDY_ALONE = "start the same command again to resume from the newest checkpoint"
_NETWORK_ERROR = re.compile(r"gloo|nccl|connection|socket|unavailable|deadline|barrier|heartbeat|halted", re.I)
"""Matches messages of errors that another process's exit causes."""


class Watchdog:
    """Context manager around a run. `initialize` starts its heartbeats, which continue between runs.

    Attributes:
      phases: phases of this process, for the loop to enter.
    """

    def __init__(self) -> None:
        self.heartbeat_timeout, self.stall, self.period = START_TIMEOUT, math.inf, START_PERIOD
        self.step, self.ended, self.code = -1, "", ExitCode.DONE
        self.index, self.count = _identity()
        self.phases = Phases({}, ActiveClock(self.period))
        self.clock = ActiveClock(self.period)
        self.last_reply = 0.0
        self.finished: threading.Event | None = None

    @contextlib.contextmanager
    def limits(self, heartbeat_timeout: float, stall: float, phases: StallConfig) -> Iterator[None]:
        """Sets the limits of a run for a block.

        Args:
          heartbeat_timeout: maximum seconds between heartbeats of a process.
          stall: maximum seconds that a process may stay at a step after others have passed it.
          phases: maximum seconds of the phases of this process.
        """
        shortest = min((limit for limit in dataclasses.astuple(phases) if limit), default=math.inf)
        self._set_limits(heartbeat_timeout, stall, min(5.0, heartbeat_timeout / 5, max(0.1, shortest / 5)))
        self.phases.limits = dataclasses.asdict(phases)
        try:
            yield
        finally:
            self.phases.enter(None)
            self._set_limits(max(heartbeat_timeout, START_TIMEOUT), math.inf, START_PERIOD)

    def _set_limits(self, heartbeat_timeout: float, stall: float, period: float) -> None:
        self.heartbeat_timeout, self.stall, self.period = heartbeat_timeout, stall, period
        self.clock.period = self.phases.clock.period = period

    def set_step(self, step: int) -> None:
        """Sets the step that this process's heartbeats report. Call after dispatching the step."""
        self.step = step

    def start(self) -> Watchdog:
        """Starts the threads, if they are not running."""
        if self.finished is None:
            self.finished = threading.Event()
            loops = [self._check_local]
            if self.count > 1:
                self._send_heartbeat()
                loops.append(self._exchange)
            for loop in loops:
                threading.Thread(target=loop, args=(self.finished,), name="watchdog", daemon=True).start()
        return self

    def __enter__(self) -> Watchdog:
        self.step, self.ended, self.code = -1, "", ExitCode.DONE
        _own_failure.clear()
        return self.start()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.phases.enter(None)
        if self.count == 1:
            if self.finished is not None:
                self.finished.set()
            self.finished = None
            return
        first_line = str(error).strip().partition("\n")[0]
        network = isinstance(error, Exception) and bool(_NETWORK_ERROR.search(str(error)))
        if network and not isinstance(error, (UserError, RunError)):
            # Another process failed: wait for the watchdog thread, which identifies it and ends this process.
            time.sleep(2 * self.heartbeat_timeout + 4 * self.period)
            self._end(f"{type(error).__name__}: {first_line}", ExitCode.RESTART)
            problem = f"stopped: another process was lost, and not identified ({first_line})"
            raise Restart(f"{problem}; {_REMEDY}") from error
        code = _failure_code(error)
        self._end(f"{type(error).__name__}: {first_line}".removesuffix(": ") if code else "done", code)

    def _end(self, ended: str, code: ExitCode) -> None:
        """Reports the end of this process's run to the others, and waits until they know if the coordinator fails."""
        self.ended, self.code = ended, code
        if code:
            _own_failure.append(code)
        with contextlib.suppress(RuntimeError, ValueError):
            self._send_heartbeat()
            if self.index or not code:
                return
            deadline = time.monotonic() + INPUT_ERROR_SECONDS
            while code == ExitCode.INVALID_INPUT and time.monotonic() < deadline:
                if all(heartbeat["ended"] for heartbeat in self._heartbeats().values()):
                    return
                time.sleep(0.1)
            self._broadcast(
                f"process 0 of {self.count} on {socket.gethostname()} failed: {ended}", code, self.count - 1
            )

    def close(self) -> None:
        """Runs at the exit of this process: reports it to the others, or skips JAX's wait for them after a failure."""
        if _own_failure:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(_own_failure[0])
        self.ended = self.ended or "done"
        with contextlib.suppress(RuntimeError, ValueError, AttributeError):
            self._send_heartbeat()

    # Threads.

    def _check_local(self, finished: threading.Event) -> None:
        """Ends this process if one of its phases exceeds its limit, or process 0 does not answer."""
        while not finished.wait(self.period):
            now = self.clock()
            stalled = self.phases.check()
            if stalled:
                faulthandler.dump_traceback(file=2)
                if self.count > 1:
                    threading.Thread(target=self._end, args=(f"stalled: {stalled}", ExitCode.RESTART)).start()
                    time.sleep(2 * self.period)  # the others learn the cause, unless the coordinator is lost too
                name = f"process {self.index} of {self.count}: " if self.count > 1 else ""
                remedy = _REMEDY if self.count > 1 else _REMEDY_ALONE
                end_process(ExitCode.RESTART, f"stopped: {name}{stalled} (stacks above); {remedy}")
            if self.count > 1 and self.index and now - self.last_reply > self.heartbeat_timeout:
                exit_with(f"process 0 of {self.count} has not answered for {now - self.last_reply:.0f} s")

    def _exchange(self, finished: threading.Event) -> None:
        """Exchanges heartbeats; ends this process if another one is lost."""
        clock = ActiveClock(self.period)
        monitor = HeartbeatMonitor(self.count, self.heartbeat_timeout, self.stall, clock)
        while not finished.wait(self.period):
            with contextlib.suppress(RuntimeError, ValueError):
                self._send_heartbeat()
                if self.index == 0:
                    clock.period, monitor.heartbeat_timeout, monitor.stall = (
                        self.period,
                        self.heartbeat_timeout,
                        self.stall,
                    )
                    failure = monitor.check(self._heartbeats())
                    if failure and not self.ended:
                        self._broadcast(failure, monitor.exit_code, self.count - 1 - len(monitor.failed))
                        exit_with(failure, monitor.exit_code)
                else:
                    for _, text in self._client.key_value_dir_get("mmjax/watch/verdict/"):
                        self._client.key_value_set(f"mmjax/watch/heard/{self.index}", "yes", allow_overwrite=True)
                        verdict = json.loads(text)
                        exit_with(verdict["failure"], ExitCode(verdict["code"]))
                self.last_reply = self.clock()

    # Messages through the coordinator's key-value store.

    @property
    def _client(self) -> Any:
        from jax._src import distributed

        return distributed.global_state.client

    def _send_heartbeat(self) -> None:
        heartbeat = {"host": socket.gethostname(), "step": self.step, "time": time.monotonic(), "ended": self.ended}
        if self.code:
            heartbeat["code"] = int(self.code)
        self._client.key_value_set(f"mmjax/watch/alive/{self.index}", json.dumps(heartbeat), allow_overwrite=True)

    def _heartbeats(self) -> dict[int, dict[str, Any]]:
        entries = self._client.key_value_dir_get("mmjax/watch/alive/")
        return {int(key.rpartition("/")[2]): json.loads(text) for key, text in entries}

    def _broadcast(self, failure: str, code: ExitCode, receivers: int) -> None:
        """Sends `failure` to the other processes and waits for replies, as the coordinator exits with this process."""
        verdict = json.dumps({"failure": failure, "code": int(code)})
        self._client.key_value_set("mmjax/watch/verdict/all", verdict, allow_overwrite=True)
        deadline = time.monotonic() + self.heartbeat_timeout
        while len(self._client.key_value_dir_get("mmjax/watch/heard/")) < receivers and time.monotonic() < deadline:
            time.sleep(0.1)


def _identity() -> tuple[int, int]:
    """Returns the index of this process and the number of processes, without starting JAX's devices."""
    from jax._src import distributed

    state = distributed.global_state
    return (state.process_id, state.num_processes or 1) if state.client is not None else (0, 1)


def _failure_code(error: BaseException | None) -> ExitCode:
    """Returns the exit code of an error that ends a run; DONE if all processes end with it, as after a preemption."""
    if error is None or isinstance(error, (Preempted, KeyboardInterrupt)):
        return ExitCode.DONE
    if isinstance(error, SystemExit) and not error.code:
        return ExitCode.DONE
    return getattr(error, "exit_code", ExitCode.FAILED)


_current: list[Watchdog] = []
_own_failure: list[ExitCode] = []
"""Exit code of this process, if it failed by itself."""


def watchdog() -> Watchdog:
    """Returns the watchdog of this process; a new one if the number of processes has changed."""
    if not _current or (_current[0].index, _current[0].count) != _identity():
        _current[:] = [Watchdog()]
    return _current[0]


def catch_abort() -> None:
    """Handles SIGABRT, which JAX raises if the coordinator or another process is lost: prints the cause and exits."""
    from jax._src import distributed

    count, address = distributed.global_state.num_processes, distributed.global_state.coordinator_address or ""
    host, _, port = address.rpartition(":")

    def on_abort(signal_number: int) -> None:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
            failure = "JAX aborted this process; JAX's message above names the cause and the lost process"
        except (OSError, ValueError):
            failure = f"process 0 of {count} at {address} does not answer"
        exit_with(failure)

    # A C++ thread raises the signal; Python's own signal handlers never run there.
    _handlers.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(on_abort))
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    library.signal(signal.SIGABRT, ctypes.cast(_handlers[-1], ctypes.c_void_p))


_handlers: list[Any] = []
"""References to the ctypes callbacks, which must outlive their registration in libc."""


def exit_with(failure: str, code: ExitCode = ExitCode.RESTART) -> None:
    """Prints `failure` and exits at once, with `code`, or with this process's own code if it failed before."""
    remedy = f"; {_REMEDY}" if code == ExitCode.RESTART else ""
    end_process(_own_failure[0] if _own_failure else code, f"stopped: {failure}{remedy}")
