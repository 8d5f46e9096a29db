"""Watchdog of multi-process runs: if a process dies or stalls, all exit within a bounded time and name it.

Without it, the other processes would wait in a collective forever (TPU), or fail with a network error that does not
name the dead one. Every process sends a heartbeat with its step every few seconds; process 0 checks them. Messages go
through the coordinator of `jax.distributed` and need no device.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import time
from typing import Any

import jax

_REMEDY = "start the same command again, with as many processes as are available, to resume from the newest checkpoint"
_NETWORK_ERROR = re.compile(r"gloo|nccl|connection|socket|unavailable|deadline|barrier|heartbeat|halted", re.I)
"""Matches messages of errors that another process's exit causes."""

_watchdogs = itertools.count()


class Watchdog:
    """Context manager around training and evaluation. Does nothing in single-process runs.

    Args:
      heartbeat_timeout: maximum seconds between heartbeats of a process.
      stall: maximum seconds that a process may stay at a step after others have passed it.
    """

    def __init__(self, heartbeat_timeout: float, stall: float):
        self.heartbeat_timeout, self.stall = heartbeat_timeout, stall
        self.step, self.ended = -1, ""
        self.period = min(5.0, heartbeat_timeout / 5)
        self.index, self.count = jax.process_index(), jax.process_count()
        self.key = f"mmjax/watch/{next(_watchdogs)}"
        self.finished = threading.Event()
        self.thread: threading.Thread | None = None

    def set_step(self, step: int) -> None:
        """Sets the step that this process's heartbeats report. Call after dispatching the step."""
        self.step = step

    def __enter__(self) -> Watchdog:
        if self.count > 1:
            self._send_heartbeat()
            self.thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
            self.thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self.thread is None:
            return
        if isinstance(error, Exception) and _NETWORK_ERROR.search(str(error)):
            # Another process failed: wait for the watchdog thread, which identifies it and ends this process.
            self.thread.join(2 * self.heartbeat_timeout + 4 * self.period)
        self.finished.set()
        self.thread.join(self.heartbeat_timeout)
        first_line = str(error).strip().partition("\n")[0]
        # SystemExit is not a failure: on preemption all processes exit at the same step.
        failed = error is not None and not isinstance(error, SystemExit)
        self.ended = f"{type(error).__name__}: {first_line}".removesuffix(": ") if failed else "done"
        with contextlib.suppress(RuntimeError, ValueError):
            self._send_heartbeat()

    # Messages through the coordinator's key-value store.

    @property
    def _client(self) -> Any:
        from jax._src import distributed

        return distributed.global_state.client

    def _send_heartbeat(self) -> None:
        heartbeat = {"host": socket.gethostname(), "step": self.step, "time": time.monotonic(), "ended": self.ended}
        self._client.key_value_set(f"{self.key}/alive/{self.index}", json.dumps(heartbeat), allow_overwrite=True)

    def _run(self) -> None:
        monitor = HeartbeatMonitor(self.count, self.heartbeat_timeout, self.stall) if self.index == 0 else None
        last_reply = time.monotonic()
        while not self.finished.wait(self.period):
            try:
                self._send_heartbeat()
                if monitor is not None:
                    entries = self._client.key_value_dir_get(f"{self.key}/alive/")
                    failure = monitor.check({int(key.rpartition("/")[2]): json.loads(text) for key, text in entries})
                    if failure:
                        self._broadcast(failure, self.count - 1 - len(monitor.failed))
                else:
                    failure = next((text for _, text in self._client.key_value_dir_get(f"{self.key}/verdict/")), None)
                    if failure:
                        self._client.key_value_set(f"{self.key}/heard/{self.index}", "yes", allow_overwrite=True)
                last_reply = time.monotonic()
            except (RuntimeError, ValueError):
                silence = time.monotonic() - last_reply
                failure = f"process 0 of {self.count} has not answered for {silence:.0f} s"
                if silence < self.heartbeat_timeout:
                    continue
            if failure:
                exit_with(failure)

    def _broadcast(self, failure: str, receivers: int) -> None:
        """Sends `failure` to the other processes and waits for replies, as the coordinator exits with this process."""
        self._client.key_value_set(f"{self.key}/verdict/all", failure, allow_overwrite=True)
        deadline = time.monotonic() + self.heartbeat_timeout
        while len(self._client.key_value_dir_get(f"{self.key}/heard/")) < receivers and time.monotonic() < deadline:
            time.sleep(0.1)


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


class HeartbeatMonitor:
    """Detects processes that failed, never started, fell silent or stalled, from the latest heartbeat of each.

    Measures silence with its own clock, because clocks of hosts differ.

    Args:
      count: number of processes.
      heartbeat_timeout: maximum seconds between heartbeats of a process.
      stall: maximum seconds that a process may stay at a step after others have passed it.
      clock: returns seconds.
    """

    def __init__(self, count: int, heartbeat_timeout: float, stall: float, clock=time.monotonic):
        self.count, self.heartbeat_timeout, self.stall, self.clock = count, heartbeat_timeout, stall, clock
        self.started = clock()
        self.failed: set[int] = set()
        self.last_heartbeat: dict[int, tuple[str, float]] = {}
        self.last_step: dict[int, tuple[int, float]] = {}

    def check(self, heartbeats: dict[int, dict[str, Any]]) -> str | None:
        """Returns a message that names the failed processes, or None. Sets `failed`.

        Args:
          heartbeats: latest heartbeat of each process, `{process: {"host", "step", "time", "ended"}}`.
        """
        now = self.clock()
        problems: dict[int, str] = {}
        for process, heartbeat in sorted(heartbeats.items()):
            for last, key in ((self.last_heartbeat, "time"), (self.last_step, "step")):
                if process not in last or last[process][0] != heartbeat[key]:
                    last[process] = (heartbeat[key], now)
        max_step = max((heartbeat["step"] for heartbeat in heartbeats.values()), default=-1)
        for process in range(self.count):
            if process not in heartbeats:
                if now - self.started > self.heartbeat_timeout:
                    problems[process] = f"process {process} of {self.count} did not start"
                continue
            heartbeat = heartbeats[process]
            if heartbeat["ended"] == "done":
                continue
            name = f"process {process} of {self.count} on {heartbeat['host']}, at step {heartbeat['step']},"
            silent, stuck = (now - last[process][1] for last in (self.last_heartbeat, self.last_step))
            if heartbeat["ended"]:
                problems[process] = f"{name} failed: {heartbeat['ended']}"
            elif silent > self.heartbeat_timeout:
                problems[process] = f"{name} sent no heartbeat for {silent:.0f} s: the process or its host is down"
            elif heartbeat["step"] < max_step and stuck > self.stall:
                problems[process] = f"{name} has stalled for {stuck:.0f} s, while others are at step {max_step}"
        self.failed = set(problems)
        return "; ".join(list(problems.values())[:8]) or None


def exit_with(failure: str) -> None:
    """Prints `failure` and exits with code 1 at once, even if other threads are blocked."""
    sys.stdout.flush()
    os.write(2, f"mmjax: stopped: {failure}; {_REMEDY}\n".encode())
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(1)
