"""How many processes load data: by the cores and the memory of this machine."""

from __future__ import annotations

import os
import pathlib

from absl import logging

from mmjax.host.cores import visible_cores

# Of a worker without batches: the interpreter and the libraries that it imports.
_OWN_BYTES = 600 * 2**20
# The step's own thread, and that which moves batches to the devices.
_OTHER_THREADS = 2


def worker_count(batch_bytes: int, prefetch: int, devices: str) -> int:
    """As many processes as cores and half of the free memory allow; none where the step needs the cores itself.

    Args:
      batch_bytes: of the part of a batch that this host loads.
      prefetch: batches that are made ahead, by all workers together; each makes one at least.
      devices: "tpu", "gpu" or "cpu".
    """
    if devices == "cpu":
        return 0
    count = most_workers(visible_cores(), free_bytes(), batch_bytes, prefetch)
    logging.info("%d processes load data: data.workers=%d says so, too", count, count)
    return count


def most_workers(cores: int, free: int, batch_bytes: int, prefetch: int) -> int:
    """See `worker_count`."""
    count = max(0, cores - _OTHER_THREADS)
    # One batch is being made, and those that are ahead wait.
    while count and count * (_OWN_BYTES + (1 + max(1, -(-prefetch // count))) * batch_bytes) > free / 2:
        count -= 1
    return count


def free_bytes() -> int:
    """Of memory that processes can still have, by the kernel and by the limit of the container."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    meminfo = pathlib.Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    limit, used = (pathlib.Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit.exists() and limit.read_text().strip() != "max":
        found.append(int(limit.read_text()) - int(used.read_text()))
    return max(0, min(found))
