"""Default number of data-loading processes, from the cores and memory of this machine."""

from __future__ import annotations

import os
import pathlib

from absl import logging

from mmjax.host.cores import visible_cores

# Memory of a worker without batches: the interpreter and the imported libraries.
_WORKER_BYTES = 600 * 2**20
# Threads of the main process: one for the train step, one for transfers to the devices.
_MAIN_THREADS = 2


def worker_count(batch_bytes: int, prefetch: int, platform: str) -> int:
    """Returns as many processes as the cores and half of the available memory allow.

    Returns 0 if the platform is "cpu", since the train step needs the cores.

    Args:
      batch_bytes: bytes of a batch that this host loads.
      prefetch: batches to make ahead, over all workers; each worker makes at least one.
      platform: "tpu", "gpu" or "cpu".
    """
    if platform == "cpu":
        return 0
    count = max_workers(visible_cores(), available_bytes(), batch_bytes, prefetch)
    logging.info("%d data-loading processes, chosen automatically; set data.workers=%d to keep it", count, count)
    return count


def max_workers(cores: int, available: int, batch_bytes: int, prefetch: int) -> int:
    """Returns the largest worker count that fits `cores` and half of `available` bytes; see `worker_count`."""
    count = max(0, cores - _MAIN_THREADS)
    # Each worker holds the batch that it makes and its part of the prefetched batches.
    while count and count * (_WORKER_BYTES + (1 + max(1, -(-prefetch // count))) * batch_bytes) > available / 2:
        count -= 1
    return count


def available_bytes() -> int:
    """Returns the available memory: the minimum of physical memory, MemAvailable and the cgroup limit."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    meminfo = pathlib.Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        limits.append(int(lines["MemAvailable"].split()[0]) * 1024)
    limit, used = (pathlib.Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit.exists() and limit.read_text().strip() != "max":
        limits.append(int(limit.read_text()) - int(used.read_text()))
    return max(0, min(limits))
