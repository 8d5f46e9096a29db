"""Age of this process."""

from __future__ import annotations

import os
import time


def process_age() -> float:
    """Returns the seconds since this process started; 0.0 on systems without /proc."""
    try:
        with open("/proc/self/stat") as file:
            # The name of the program, in parentheses, may contain spaces. Start time is field 22, in clock ticks.
            started = int(file.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    except (AttributeError, OSError):
        return 0.0
