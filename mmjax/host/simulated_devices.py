"""XLA thread count for simulated devices on one CPU.

A simulated device blocks one thread for each collective that it waits for, and XLA starts all independent collectives
at once. Its default pool has max(devices, cores) threads: with collectives over two mesh axes at once, all threads can
wait for devices that have no thread left (deadlock), and after 40 seconds XLA ends the process.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping

THREADS_VARIABLE = "PJRT_NPROC"
CONCURRENT_COLLECTIVES = 8
MAX_THREADS = 256


def simulated_device_count(environment: MutableMapping[str, str]) -> int:
    """Returns the number of CPU devices that XLA_FLAGS or JAX_NUM_CPU_DEVICES requests; 1 by default."""
    flags = re.findall(r"--xla_force_host_platform_device_count=(\d+)", environment.get("XLA_FLAGS", ""))
    requested = flags[-1] if flags else environment.get("JAX_NUM_CPU_DEVICES", "1")
    return int(requested) if requested.isdigit() else 1


def set_thread_count(environment: MutableMapping[str, str]) -> None:
    """Sets `PJRT_NPROC` to 8 threads per simulated device, at most 256, unless the user has set it.

    Call it before XLA's CPU client starts, which reads the variable.
    """
    devices = simulated_device_count(environment)
    if devices > 1:
        environment.setdefault(THREADS_VARIABLE, str(min(CONCURRENT_COLLECTIVES * devices, MAX_THREADS)))
