"""Data-loading worker processes: import paths, signals, and a monitor that kills stopped workers."""

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

from mmjax.errors import Restart
from mmjax.host.child_processes import is_stopped

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
    current folder. Child processes also run the file of the main module; a program from standard input has none.
    """
    for index, entry in enumerate(sys.path):
        if (pathlib.Path(entry) / "mmjax").is_dir():
            if not (pathlib.Path(entry) / "mmjax").samefile(_PACKAGE):
                sys.path.insert(index, str(_PACKAGE.parent))
            break
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is not None and not os.path.exists(file):
        del main.__file__
    before = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = "1"
    try:
        yield
    finally:
        if file is not None:
            main.__file__ = file
        os.environ.pop(_SAFE_PATH, None)
        if before is not None:
            os.environ[_SAFE_PATH] = before


def init_worker(index: int, count: int) -> None:
    """Prepares worker `index` of `count`: ignores signals to the whole process group, and ends with its parent.

    Terminals send Ctrl-C and launchers SIGTERM to all processes of a run. The parent process then needs batches until
    it has saved a checkpoint. If it is killed, the worker would wait forever to pass on its next batch.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), name="parent monitor", daemon=True).start()


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


class WorkerLost(Restart, RuntimeError):
    """A data-loading process was killed, or stopped by a signal."""


class WorkerMonitor:
    """Thread that kills data-loading processes which have been stopped for too long, and names lost ones.

    The parent would wait forever for the next batch of a stopped process. If the process is killed, Grain raises an
    error.

    Args:
      seconds: seconds after which a stopped process is killed; defaults to `STOPPED_SECONDS`.
    """

    def __init__(self, seconds: float | None = None):
        self._seconds = STOPPED_SECONDS if seconds is None else seconds
        self._finished = threading.Event()
        self._workers: dict[int, multiprocessing.process.BaseProcess] = {}
        self._killed: set[int] = set()
        self._thread = threading.Thread(target=self._run, name="worker monitor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._finished.set()

    def error(self, exit_code: str) -> WorkerLost:
        """Returns the error for a worker that ended with `exit_code`; names its process id if it is known."""
        problem = f"a data-loading process ended with exit code {exit_code}"
        lost = [pid for pid, worker in self._workers.items() if worker.exitcode not in (None, 0)]
        if killed := self._killed.intersection(lost):
            pids = ", ".join(map(str, sorted(killed)))
            problem += f": process {pids} was stopped by a signal for {self._seconds:g} s, and was then killed"
        else:
            name = f" (process {', '.join(map(str, lost))})" if lost else ""
            problem += f"{name}, after SIGKILL often for lack of memory: lower data.workers or data.prefetch"
        return WorkerLost(f"{problem}; run the same command to resume from the newest checkpoint")

    def _run(self) -> None:
        since: dict[int, float] = {}
        while not self._finished.wait(min(1.0, self._seconds / 4)):
            running = {child.pid: child for child in multiprocessing.active_children() if child.pid}
            running = {pid: child for pid, child in running.items() if child.name.startswith("grain-")}
            self._workers |= running
            since = {pid: since.get(pid, time.monotonic()) for pid in running if is_stopped(pid)}
            for pid, start in since.items():
                if time.monotonic() - start >= self._seconds:
                    self._killed.add(pid)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
