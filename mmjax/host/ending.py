"""Immediate end of this process, from any thread."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
from typing import NoReturn

_FLUSH_SECONDS = 1.0


def write_line(message: str) -> None:
    """Writes `mmjax: MESSAGE` to standard error at once, without the locks of Python's streams."""
    # On a terminal, a progress bar may occupy the current line.
    start = "\n" if os.isatty(2) else ""
    with contextlib.suppress(OSError):
        os.write(2, f"{start}mmjax: {message}\n".encode(errors="replace"))


def end_process(code: int, message: str) -> NoReturn:
    """Prints `message` and ends this process at once, even if other threads are blocked.

    Kills data-loading processes, and sends SIGTERM to other child processes, which may have work to save.
    """
    flush = threading.Thread(target=_flush, daemon=True)  # may wait for a lock that a blocked thread holds
    flush.start()
    flush.join(_FLUSH_SECONDS)
    if os.isatty(1):
        with contextlib.suppress(OSError):
            os.write(1, b"\x1b[?25h")  # progress bars hide the cursor
    write_line(message)
    for child in multiprocessing.active_children():
        with contextlib.suppress(OSError):
            (child.kill if child.name.startswith("grain-") else child.terminate)()
    os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
