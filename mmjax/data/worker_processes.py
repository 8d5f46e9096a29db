"""Data-loading worker processes: import paths, and a monitor that kills stopped workers."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Iterator

from absl import logging

STOPPED_SECONDS = 30.0
"""Seconds after which a process that is stopped, for example by SIGSTOP or a debugger, counts as lost."""

_PACKAGE = pathlib.Path(__file__).parents[1]
_SAFE_PATH = "PYTHONSAFEPATH"


@contextlib.contextmanager
def parent_imports() -> Iterator[None]:
    """Makes processes that start in this block import mmjax from the same folder as this process.

    Child processes get a copy of `sys.path`. With an editable install, an entry that contains another folder `mmjax`,
    such as the parent of a clone, would be searched before the package. In that case, the parent folder of this package
    is inserted before that entry, and stays there after the block. PYTHONSAFEPATH stops Python from prepending the
    current folder.
    """
    for index, entry in enumerate(sys.path):
        if (pathlib.Path(entry) / "mmjax").is_dir():
            if not (pathlib.Path(entry) / "mmjax").samefile(_PACKAGE):
                sys.path.insert(index, str(_PACKAGE.parent))
            break
    before = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = "1"
    try:
        yield
    finally:
        os.environ.pop(_SAFE_PATH)
        if before is not None:
            os.environ[_SAFE_PATH] = before


class WorkerMonitor:
    """Thread that kills data-loading processes which have been stopped for too long.

    The parent would wait forever for the next batch of a stopped process. If the process is killed, Grain raises an
    error.

    Args:
      seconds: seconds after which a stopped process is killed; defaults to `STOPPED_SECONDS`.
    """

    def __init__(self, seconds: float | None = None):
        self._seconds = STOPPED_SECONDS if seconds is None else seconds
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._run, name="worker monitor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._finished.set()

    def _run(self) -> None:
        since: dict[int, float] = {}
        while not self._finished.wait(min(5.0, self._seconds / 4)):
            pids = [child.pid for child in multiprocessing.active_children() if child.name.startswith("grain-")]
            stopped = [pid for pid in pids if pid and is_stopped(pid)]
            since = {pid: since.get(pid, time.monotonic()) for pid in stopped}
            for pid, start in since.items():
                if time.monotonic() - start >= self._seconds:
                    logging.error("Data-loading process %d is stopped; killing it", pid)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


def is_stopped(pid: int) -> bool:
    """Returns True if a process on this machine is stopped by a signal or a debugger; False where /proc is missing."""
    try:
        # The name, in parentheses, may contain spaces; the state follows it.
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in ("T", "t")
