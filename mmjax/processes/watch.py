"""A run of several processes ends when one of them is gone, within a bounded time, and says which.

Without this the others would wait in a collective for ever, on a TPU, or end with an error of the network that names
nobody. Every process says every few seconds that it lives and at which step it is; process 0 judges. All of it goes
over the coordinator of `jax.distributed` and needs no device.
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

_REMEDY = "start the same command again, with as many processes as there are: it goes on from the newest checkpoint"
_NETWORK = re.compile(r"gloo|nccl|connection|socket|unavailable|deadline|barrier|heartbeat|halted", re.I)
"""What errors say that come from another process's end."""

_watches = itertools.count()


class Watch:
    """Around everything that all processes do together.

    Args:
      heartbeat_timeout: seconds that a process may be silent.
      stall: seconds that a process may stay at a step that others have left.
    """

    def __init__(self, heartbeat_timeout: float, stall: float):
        self.heartbeat_timeout, self.stall = heartbeat_timeout, stall
        self.step, self.ended = -1, ""
        self.period = min(5.0, heartbeat_timeout / 5)
        self.me, self.count = jax.process_index(), jax.process_count()
        self.key = f"mmjax/watch/{next(_watches)}"
        self.over = threading.Event()
        self.thread: threading.Thread | None = None

    def mark(self, step: int) -> None:
        """This process has begun all of this step."""
        self.step = step

    def __enter__(self) -> Watch:
        if self.count > 1:
            self._say()
            self.thread = threading.Thread(target=self._run, name="watch", daemon=True)
            self.thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self.thread is None:
            return
        if error is not None and isinstance(error, Exception) and _NETWORK.search(str(error)):
            # It is another process that failed: stay until it is known which. The thread ends this process then.
            self.thread.join(2 * self.heartbeat_timeout + 4 * self.period)
        self.over.set()
        self.thread.join(self.heartbeat_timeout)
        first = str(error).strip().partition("\n")[0]
        # All processes exit by themselves at the same step, when the machines are taken away.
        failed = error is not None and not isinstance(error, SystemExit)
        self.ended = f"{type(error).__name__}: {first}".removesuffix(": ") if failed else "done"
        with contextlib.suppress(RuntimeError, ValueError):
            self._say()

    # What goes over the coordinator.

    @property
    def _client(self) -> Any:
        from jax._src import distributed

        return distributed.global_state.client

    def _say(self) -> None:
        said = {"host": socket.gethostname(), "step": self.step, "time": time.monotonic(), "ended": self.ended}
        self._client.key_value_set(f"{self.key}/alive/{self.me}", json.dumps(said), allow_overwrite=True)

    def _run(self) -> None:
        judge = Judge(self.count, self.heartbeat_timeout, self.stall) if self.me == 0 else None
        heard = time.monotonic()
        while not self.over.wait(self.period):
            try:
                self._say()
                if judge is not None:
                    said = self._client.key_value_dir_get(f"{self.key}/alive/")
                    verdict = judge.look({int(key.rpartition("/")[2]): json.loads(text) for key, text in said})
                    if verdict:
                        self._tell(verdict, self.count - 1 - len(judge.culprits))
                else:
                    verdict = next((text for _, text in self._client.key_value_dir_get(f"{self.key}/verdict/")), None)
                    if verdict:
                        self._client.key_value_set(f"{self.key}/heard/{self.me}", "yes", allow_overwrite=True)
                heard = time.monotonic()
            except (RuntimeError, ValueError):
                silence = time.monotonic() - heard
                verdict = f"process 0 of {self.count} has not answered for {silence:.0f} s"
                if silence < self.heartbeat_timeout:
                    continue
            if verdict:
                stop(verdict)

    def _tell(self, verdict: str, others: int) -> None:
        """Process 0 stays until the others have heard it: the coordinator ends with this process."""
        self._client.key_value_set(f"{self.key}/verdict/all", verdict, allow_overwrite=True)
        end = time.monotonic() + self.heartbeat_timeout
        while len(self._client.key_value_dir_get(f"{self.key}/heard/")) < others and time.monotonic() < end:
            time.sleep(0.1)


def catch_abort() -> None:
    """JAX aborts a process that loses the coordinator, or when another one is dead: says who, and leaves in order."""
    from jax._src import distributed

    count, address = distributed.global_state.num_processes, distributed.global_state.coordinator_address or ""
    host, _, port = address.rpartition(":")

    def on_abort(number: int) -> None:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
            verdict = "JAX ended this process; its message above says why, and which other one it misses"
        except (OSError, ValueError):
            verdict = f"process 0 of {count} at {address} is gone"
        stop(verdict)

    # The signal is raised in a thread of C++, where Python's own handlers never run.
    _handlers.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(on_abort))
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    library.signal(signal.SIGABRT, ctypes.cast(_handlers[-1], ctypes.c_void_p))


_handlers: list[Any] = []
"""Kept: the C library has only their addresses."""


class Judge:
    """Decides, from what the processes say, whether one of them holds the others up.

    `look` is called again and again; times are those of the judge's own clock.
    """

    def __init__(self, count: int, heartbeat_timeout: float, stall: float, clock=time.monotonic):
        self.count, self.heartbeat_timeout, self.stall, self.clock = count, heartbeat_timeout, stall, clock
        self.started = clock()
        self.culprits: set[int] = set()
        self.last_said: dict[int, tuple[str, float]] = {}
        self.last_step: dict[int, tuple[int, float]] = {}

    def look(self, said: dict[int, dict[str, Any]]) -> str | None:
        """Args: {process: what it said last, "host", "step", "time", "ended"}. Returns who is gone or late, or None."""
        now = self.clock()
        problems: dict[int, str] = {}
        for process, words in sorted(said.items()):
            for last, key in ((self.last_said, "time"), (self.last_step, "step")):
                if process not in last or last[process][0] != words[key]:
                    last[process] = (words[key], now)
        there = {process: words for process, words in said.items() if words["ended"] != "done"}
        ahead = max((words["step"] for words in said.values()), default=-1)
        for process in range(self.count):
            if process not in said:
                if now - self.started > self.heartbeat_timeout:
                    problems[process] = f"process {process} of {self.count} did not begin"
                continue
            if process not in there:
                continue
            words = there[process]
            name = f"process {process} of {self.count} on {words['host']}, at step {words['step']},"
            silent, stuck = (now - last[process][1] for last in (self.last_said, self.last_step))
            if words["ended"]:
                problems[process] = f"{name} ended: {words['ended']}"
            elif silent > self.heartbeat_timeout:
                problems[process] = f"{name} has been silent for {silent:.0f} s: it ended, or its host did"
            elif words["step"] < ahead and stuck > self.stall:
                problems[process] = f"{name} has made no step for {stuck:.0f} s, while others are at step {ahead}"
        self.culprits = set(problems)
        return "; ".join(list(problems.values())[:8]) or None


def stop(verdict: str) -> None:
    """Ends this process at once, with a line that says why, whatever its other threads wait for."""
    sys.stdout.flush()
    os.write(2, f"mmjax: stopped: {verdict}; {_REMEDY}\n".encode())
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(1)
