"""Start-up of multi-process runs: connects this process to the others.

Single-process runs need no set-up. On several hosts, start the same command on each of them:

- Cloud TPU slices and multislices (also on GKE) and Slurm steps (`srun`) are detected automatically.
- Elsewhere give `--coordinator=HOST:PORT --process_count=N --process_id=I`, or set MMJAX_COORDINATOR,
  MMJAX_PROCESS_COUNT and MMJAX_PROCESS_ID: the address of process 0, the number of processes, and this one's index.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import re
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import jax

from mmjax.errors import UserError
from mmjax.host.ending import end_process
from mmjax.host.libtpu import has_tpu
from mmjax.processes.roll_call import REMEDY, connected
from mmjax.processes.watch import catch_abort, watchdog

START_SECONDS = 300
"""Seconds that a process waits for the others to start."""

_VARIABLES = {
    "--coordinator": "MMJAX_COORDINATOR",
    "--process_count": "MMJAX_PROCESS_COUNT",
    "--process_id": "MMJAX_PROCESS_ID",
}
_MAX_PROCESSES = 2**20
_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/worker-network-endpoints"


def initialize(
    coordinator: str | None = None,
    process_count: int | None = None,
    process_id: int | None = None,
    *,
    start_seconds: int | None = None,
) -> None:
    """Calls `jax.distributed.initialize` if the arguments, the environment or a launcher define several processes.

    Call it before anything that queries JAX's devices. A second call does nothing.

    Args:
      coordinator: "HOST:PORT" of process 0; $MMJAX_COORDINATOR by default.
      process_count: number of processes; $MMJAX_PROCESS_COUNT by default.
      process_id: index of this process, from 0; $MMJAX_PROCESS_ID by default.
      start_seconds: timeout; `START_SECONDS` by default.

    On TPU slices and Slurm, exits with code 2 and a one-line message if the other processes do not start in time.

    Raises:
      UserError: if only some of the three values are given, one is invalid, or a process is missing.
      Restart: if a process ended after it had connected.
    """
    if jax.distributed.is_initialized():
        return
    given = {
        "--coordinator": coordinator or os.environ.get("MMJAX_COORDINATOR") or None,
        "--process_count": _integer("--process_count", process_count),
        "--process_id": _integer("--process_id", process_id),
    }
    options: dict[str, Any] = {}
    if any(value is not None for value in given.values()):
        _check(given)
        if given["--process_count"] == 1:
            return
        names = ("coordinator_address", "num_processes", "process_id")
        options = dict(zip(names, given.values(), strict=True))
    elif not _has_multi_process_launcher():
        return
    seconds = START_SECONDS if start_seconds is None else start_seconds
    where = f"--coordinator={given['--coordinator']}" if options else "this cluster"
    late = UserError(where, f"some processes did not start within {seconds} s", REMEDY)
    try:
        with connected(**options, seconds=seconds) if options else contextlib.nullcontext(), _deadline(seconds, late):
            jax.distributed.initialize(**options, initialization_timeout=seconds + 60)
    except (RuntimeError, ValueError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise UserError(where, f"the processes did not connect ({first_line})", REMEDY) from error
    catch_abort()
    watchdog().start()
    atexit.register(watchdog().close)


@contextlib.contextmanager
def _deadline(seconds: int, error: UserError) -> Iterator[None]:
    """Exits with code 2 and a one-line message after `seconds`. JAX would abort with a C++ stack trace."""

    def exit_process():
        end_process(error.exit_code, f"error: {error}")

    timer = threading.Timer(seconds, exit_process)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _integer(flag: str, value: int | None) -> int | None:
    text = os.environ.get(_VARIABLES[flag]) if value is None else value
    if text is None or text == "":
        return None
    try:
        return int(text)
    except ValueError as error:
        raise UserError(_VARIABLES[flag], f"{text!r} is not an integer", "give an integer") from error


def _check(given: dict[str, str | int | None]) -> None:
    for flag, value in given.items():
        if value is None and given["--process_count"] != 1:
            others = ", ".join(name for name, other in given.items() if other is not None)
            raise UserError(flag, f"is required with {others}", f"give it, or set {_VARIABLES[flag]}")
    count, index, address = given["--process_count"], given["--process_id"], given["--coordinator"]
    if not isinstance(count, int) or not 1 <= count <= _MAX_PROCESSES:
        raise UserError("--process_count", f"{count} is not valid", f"give 1 to {_MAX_PROCESSES}")
    if isinstance(index, int) and not 0 <= index < count:
        raise UserError("--process_id", f"{index} is out of range for {count} processes", f"give 0 to {count - 1}")
    if isinstance(address, str) and not _is_address(address):
        raise UserError("--coordinator", f"{address!r} is not an address", "give HOST:PORT of process 0")


def _is_address(text: str) -> bool:
    """Returns True for HOST:PORT with a host name or IP address and a port of 1 to 65535."""
    host, _, port = text.rpartition(":")
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
        return False
    try:
        # As in name resolution, which fails on empty and very long labels.
        return bool(host) and "\0" not in host and bool(host.encode("idna"))
    except UnicodeError:
        return False


def _has_multi_process_launcher() -> bool:
    """Detects Slurm steps, Cloud TPU slices and multislices with several processes."""
    # Not SLURM_NTASKS, which is also set in a batch script outside `srun`, where there is a single process.
    if int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        return True
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if importlib.util.find_spec("libtpu") is None or (platforms and "tpu" not in platforms):
        return False
    if int(os.environ.get("MEGASCALE_NUM_SLICES") or 1) > 1:
        return True
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES")
    if hosts is not None:
        return "," in hosts
    # On a Cloud TPU VM outside GKE, only the metadata server lists the other workers of the slice.
    return has_tpu() and "," in _worker_endpoints()


def _worker_endpoints() -> str:
    request = urllib.request.Request(_METADATA, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:
            return reply.read().decode()
    except OSError:
        return ""  # not a Google Cloud machine
