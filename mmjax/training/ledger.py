"""Ledger of wall time: what a run's seconds were spent on, across restarts.

At every moment one part runs, so that the parts add up to the whole. Code marks its part with `timed`, which does
nothing outside a run. Dispatch is asynchronous: a part is charged for the time that the host spends or waits in it.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import math
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import logging

PARTS = ("compile", "step", "input", "evaluation", "checkpoint", "restore", "lost", "other")
"""Parts of the wall time. `lost` is all that processes spent after the checkpoint from which the next one resumed;
`other` is the rest, mostly start-up: imports, connecting, preparing the data and initialising the state."""

WRITE_SECONDS = 1.0
"""Interval in seconds at which a run writes its ledger, and so the most that a killed process leaves out."""

_SIZE = 8192
"""Bytes of the file. It is overwritten in place, so its size must not change."""

_KEPT = 32
_current: contextvars.ContextVar[Ledger | None] = contextvars.ContextVar("ledger", default=None)


@contextlib.contextmanager
def timed(part: str) -> Iterator[None]:
    """Charges the time of a block, or of a decorated function, to a part of the current run's ledger.

    Blocks nest: an inner one interrupts the outer one. Threads that the run starts are not charged.
    """
    ledger = _current.get()
    with ledger.part(part) if ledger else contextlib.nullcontext():
        yield


def timed_batches(batches: Iterator[Any]) -> Iterator[Any]:
    """Yields the batches of the training loop and charges the wait for each to `input`."""
    while True:
        with timed("input"):
            try:
                batch = next(batches)
            except StopIteration:
                return
        if ledger := _current.get():
            ledger.saved = False
        yield batch


def mark_saved(step: int) -> None:
    """Records in the current run's ledger that a run resumed at `step` loses nothing before this moment."""
    if ledger := _current.get():
        ledger.mark(step)


class Ledger:
    """Wall time of a run by part, in seconds, kept in a file that survives SIGKILL.

    Use it as a context manager around the run; then `open`, once the workdir is locked, and `resume`, once the
    checkpoint is restored. A thread writes the file every `WRITE_SECONDS`.

    Args:
      earlier: seconds since the process started.
      clock: returns seconds.

    Attributes:
      starts: number of processes that trained in the workdir, one after another.
      seconds: seconds by part.
      marks: {step of a checkpoint: seconds by part when it was saved}, for the newest checkpoints.
      saved: no step was taken since the newest mark, so that a process that ends in order loses nothing.
    """

    def __init__(self, earlier: float = 0.0, clock: Callable[[], float] = time.monotonic):
        self.clock, self.starts = clock, 1
        self.seconds = dict.fromkeys(PARTS, 0.0) | {"other": earlier}
        self.marks: dict[int, dict[str, float]] = {}
        self.saved = False
        self._before = dict.fromkeys(PARTS, 0.0)
        self._part, self._since = "other", clock()
        self._compiled: list[tuple[float, float]] = []
        self._step = 0
        self._lock = threading.Lock()
        self._file: int | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Ledger:
        self._token = _current.set(self)
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        return self

    def __exit__(self, *exception: Any) -> None:
        jax.monitoring.unregister_event_duration_listener(self._on_duration)
        _current.reset(self._token)
        self._closed.set()
        if self._thread:
            self._thread.join()
        if self.saved:
            self.mark(self._step)
        if self._file is not None:
            # A full disk or a deleted workdir is reported by the run itself.
            with contextlib.suppress(OSError):
                self.write()
            os.close(self._file)
            self._file = None

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Charges the time of a block to a part; time in blocks within it belongs to theirs."""
        outer = self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def _switch(self, part: str) -> str:
        with self._lock:
            self._charge()
            outer, self._part = self._part, part
        return outer

    def _charge(self) -> None:
        now = self.clock()
        self.seconds[self._part] += now - self._since
        self._since = now

    def _on_duration(self, event: str, duration_secs: float, **_: Any) -> None:
        """Moves the time that JAX traces, lowers and compiles in this run's thread from the current part to `compile`.

        JAX reports a duration at its end, inner ones first: an outer one is charged without them.
        """
        if not event.startswith("/jax/core/compile/") or _current.get() is not self:
            return
        with self._lock:
            self._charge()
            end = self._since
            begin, inner = end - duration_secs, 0.0
            while self._compiled and self._compiled[-1][1] > begin:
                first, last = self._compiled.pop()
                inner += last - max(first, begin)
            self._compiled = [*self._compiled[-_KEPT:], (begin, end)]
            moved = min(max(0.0, duration_secs - inner), self.seconds[self._part])
            self.seconds[self._part] -= moved
            self.seconds["compile"] += moved

    def mark(self, step: int) -> None:
        """Records that a run resumed at `step` loses nothing before this moment."""
        with self._lock:
            self._charge()
            self.marks.pop(step, None)
            self.marks = dict([*self.marks.items(), (step, dict(self.seconds))][-_KEPT:])
            self._step, self.saved = step, True

    def open(self, path: pathlib.Path) -> None:
        """Adds the parts that earlier processes of the run wrote to `path`, and writes there from now on.

        Starts anew, with a warning, if the file is damaged.
        """
        with self._lock:
            starts, self._before, self.marks = _read(path)
            self.starts += starts
            self.seconds = {name: self.seconds[name] + self._before[name] for name in PARTS}
        # The file is overwritten in place: a deleted workdir does not come back, and its folder can be removed.
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self.write()
        self._thread = threading.Thread(target=self._write_regularly, name="ledger", daemon=True)
        self._thread.start()

    def _write_regularly(self) -> None:
        while not self._closed.wait(WRITE_SECONDS):
            # The run itself soon fails at its next row or checkpoint, and reports the error.
            with contextlib.suppress(OSError):
                self.write()

    def write(self) -> None:
        """Writes the ledger to its file."""
        with self._lock:
            self._charge()
            marks = {step: _rounded(parts) for step, parts in self.marks.items()}
            text = json.dumps({"starts": self.starts, "seconds": _rounded(self.seconds), "marks": marks})
        if self._file is not None:
            os.pwrite(self._file, text.encode().ljust(_SIZE - 1) + b"\n", 0)

    def resume(self, step: int) -> None:
        """Moves what earlier processes spent after the restored checkpoint to `lost`. Call before the first step.

        Args:
          step: step of the restored checkpoint; 0 if the run begins anew.
        """
        with self._lock:
            nothing = dict.fromkeys(PARTS, 0.0)
            # Without a mark, as after a damaged file, the loss is unknown and counts as none.
            kept = self.marks.get(step, self._before if step else nothing)
            lost = sum(self._before.values()) - sum(kept.values())
            for name in PARTS:
                self.seconds[name] += kept[name] - self._before[name]
            self.seconds["lost"] += lost
            # The marks of later checkpoints are void, and what was lost once is not lost again.
            self.marks = {saved: parts for saved, parts in self.marks.items() if saved < step}
            self.marks[step] = kept | {"lost": kept["lost"] + lost}
            self._step, self.saved = step, True

    def summary(self) -> dict[str, Any]:
        """Returns `{"starts", "total_seconds", "seconds": {part: seconds}, "percent": {part: share}}`."""
        with self._lock:
            self._charge()
            seconds = dict(self.seconds)
        total = sum(seconds.values())
        return {
            "starts": self.starts,
            "total_seconds": round(total, 2),
            "seconds": {name: round(value, 2) for name, value in seconds.items()},
            "percent": {name: round(100 * value / max(total, 1e-9), 2) for name, value in seconds.items()},
        }


def _read(path: pathlib.Path) -> tuple[int, dict[str, float], dict[int, dict[str, float]]]:
    """Returns the starts, the parts and the marks in a ledger's file: none if it is missing or damaged."""
    try:
        content = json.loads(path.read_text())
        marks = {int(step): _parts(parts) for step, parts in content["marks"].items()}
        return int(content["starts"]), _parts(content["seconds"]), marks
    except FileNotFoundError:
        pass
    except (AttributeError, KeyError, TypeError, ValueError):
        logging.warning("%s is damaged; wall time is counted from this start", path)
    return 0, dict.fromkeys(PARTS, 0.0), {}


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in seconds.items()}


def _parts(seconds: dict[str, float]) -> dict[str, float]:
    parts = {name: float(seconds[name]) for name in PARTS}
    if not all(math.isfinite(value) and value >= 0 for value in parts.values()):
        raise ValueError(f"{parts} are not seconds")
    return parts
