"""SIGTERM, SIGHUP and Ctrl-C: a thread acknowledges them at once, also while the main thread runs C++ code.

Python runs signal handlers in the main thread between bytecodes, so not during a compilation or a wait for a device.
The signal's number is therefore also written to a pipe (`signal.set_wakeup_fd`), which the thread reads. If the run has
unsaved steps, the thread sets `requested`, and the training loop saves a checkpoint and stops; else the process ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from mmjax.errors import ExitCode
from mmjax.host.ending import end_process, write_line

TERMINATIONS = (signal.SIGTERM, signal.SIGHUP)
"""Signals of launchers, preempted machines and closed terminals."""


class Interruption:
    """Signals that ask this process to stop.

    Attributes:
      installed: False outside the main thread, where Python cannot handle signals.
      requested: the first signal, or None.
      position: returns the current step of the run, and the step at which a restarted run would resume. The difference
        is unsaved.
    """

    def __init__(self) -> None:
        self.installed = False
        self.requested: signal.Signals | None = None
        self.position: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self._native: Callable[[int], None] | None = None
        self._restore: list[Callable[[], Any]] = []
        self._trampoline = 0
        self._handled: set[int] = set()

    def install(self, signals: tuple[signal.Signals, ...]) -> None:
        """Handles `signals`, except ignored ones (`nohup`). Call again after JAX has installed its own SIGTERM handler.

        JAX's handler, which makes all processes of a run agree on a last step, is then called as well.
        """
        if not self.installed:
            self._start_thread()
        for number in signals:
            native = _native_handler(number)
            previous = signal.getsignal(number)
            if previous == signal.SIG_IGN or (previous == self._handle and native == self._trampoline):
                continue
            signal.signal(number, self._handle)
            self._handled.add(number)
            self._trampoline = _native_handler(number)
            if number == signal.SIGTERM and native not in (0, 1, self._trampoline):
                self._native = ctypes.CFUNCTYPE(None, ctypes.c_int)(native)
            self._restore.append(functools.partial(signal.signal, number, previous))

    def _start_thread(self) -> None:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        thread = threading.Thread(target=self._read, args=(reader,), name="signals", daemon=True)
        thread.start()
        self.installed = True

        def stop() -> None:
            signal.set_wakeup_fd(previous)
            os.close(writer)
            thread.join()
            os.close(reader)

        self._restore.append(stop)

    def uninstall(self) -> None:
        """Restores the previous handlers."""
        while self._restore:
            self._restore.pop()()
        self.installed = False

    def _handle(self, number: int, frame: Any) -> None:
        # The thread does the rest. In the main thread, the request must hold from its next operation on.
        self.requested = self.requested or signal.Signals(number)

    def _read(self, reader: int) -> None:
        seen: list[int] = []
        while received := os.read(reader, 1):
            number = received[0]
            if number in self._handled:  # the pipe also gets the signals that Python itself handles
                self._acknowledge(signal.Signals(number), bool(seen))
                seen.append(number)

    def _acknowledge(self, number: signal.Signals, again: bool) -> None:
        try:
            step, resume = self.position()
        except OSError:
            step, resume = 0, 0
        remedy = f"run the same command to resume at step {resume}" if resume else "run the same command to start again"
        interrupted = number == signal.SIGINT
        if interrupted and again:
            end_process(ExitCode.INTERRUPTED, f"interrupted again: stopped without a checkpoint; {remedy}")
        if step <= resume:
            reason = "interrupted" if interrupted else f"stopped by {number.name}"
            end_process(ExitCode.INTERRUPTED if interrupted else ExitCode.RESTART, f"{reason}; {remedy}")
        self.requested = self.requested or number
        reason = "interrupted" if interrupted else f"{number.name} received"
        hint = "; press Ctrl-C again to stop at once" if interrupted else ""
        write_line(f"{reason}: saving a checkpoint before the run stops{hint}")
        if self._native is not None:
            self._native(signal.SIGTERM)


def _native_handler(number: int) -> int:
    """Returns the address of the C handler of a signal; 0 is the default, 1 ignores it."""
    action = (ctypes.c_void_p * 32)()  # larger than `struct sigaction`, whose first member is the handler
    ctypes.CDLL(None).sigaction(ctypes.c_int(number), None, ctypes.byref(action))
    return action[0] or 0


_current: Interruption | None = None


@contextlib.contextmanager
def handle_signals(*signals: signal.Signals) -> Iterator[Interruption]:
    """Handles signals within a block; nested blocks share one `Interruption`. Outside the main thread it does nothing.

    Args:
      *signals: by default SIGTERM, SIGHUP and SIGINT.
    """
    global _current
    if threading.current_thread() is not threading.main_thread():
        yield Interruption()
        return
    outer, interruption = _current, _current or Interruption()
    position = interruption.position
    interruption.install(signals or (*TERMINATIONS, signal.SIGINT))
    _current = interruption
    try:
        yield interruption
    finally:
        interruption.position = position
        if outer is None:
            interruption.uninstall()
            _current = None
