"""Child processes that a signal or a debugger stopped."""

from __future__ import annotations

import multiprocessing
import pathlib


def is_stopped(pid: int) -> bool:
    """Returns True if a process on this machine is stopped by a signal or a debugger; False where /proc is missing."""
    try:
        # The name, in parentheses, may contain spaces; the state follows it.
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in ("T", "t")


def stopped_children() -> list[int]:
    """Returns the process ids of this process's stopped children."""
    return [child.pid for child in multiprocessing.active_children() if child.pid and is_stopped(child.pid)]
