"""CPU cores available to this process."""

from __future__ import annotations

import os


def visible_cores() -> int:
    """Returns the number of cores in this process's CPU affinity, or of all cores where the OS has no affinity."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
