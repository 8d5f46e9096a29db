"""Devices that are simulated on one CPU share its threads, and need enough of them.

A simulated device holds a thread for each collective that it waits in, and XLA starts all that do not depend on each
other. Its pool has one thread a device, or one a core where that is more: with collectives over two mesh axes at once
all threads can wait for devices that have no thread left, and after 40 seconds XLA ends the process.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping

THREADS = "PJRT_NPROC"
COLLECTIVES_AT_ONCE = 8
MOST_THREADS = 256


def simulated_devices(environment: MutableMapping[str, str]) -> int:
    """How many devices of the CPU JAX is asked for; 1 where nothing asks."""
    flags = re.findall(r"--xla_force_host_platform_device_count=(\d+)", environment.get("XLA_FLAGS", ""))
    asked = flags[-1] if flags else environment.get("JAX_NUM_CPU_DEVICES", "1")
    return int(asked) if asked.isdigit() else 1


def enough_threads(environment: MutableMapping[str, str]) -> None:
    """Sets the variable that XLA reads when its CPU client starts, unless the user has chosen."""
    devices = simulated_devices(environment)
    if devices > 1:
        environment.setdefault(THREADS, str(min(COLLECTIVES_AT_ONCE * devices, MOST_THREADS)))
