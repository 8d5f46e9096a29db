"""Several processes that train as one: who starts them says so, and here they find each other.

A run of one process needs nothing of this. On several hosts, start the same command on each of them:

- Cloud TPU slices and multislices, GKE's among them, and Slurm steps (`srun`) say themselves who is who.
- Anywhere else give `--coordinator=HOST:PORT --process_count=N --process_id=I`, or the variables MMJAX_COORDINATOR,
  MMJAX_PROCESS_COUNT and MMJAX_PROCESS_ID: the address of process 0, how many there are, and which one this is.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import sys
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import jax

from mmjax.errors import UserError
from mmjax.processes.roll_call import roll_call
from mmjax.processes.watch import catch_abort

START_SECONDS = 300
"""How long a process waits for the others to start."""

_VARIABLES = {
    "--coordinator": "MMJAX_COORDINATOR",
    "--process_count": "MMJAX_PROCESS_COUNT",
    "--process_id": "MMJAX_PROCESS_ID",
}
_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/worker-network-endpoints"


def initialize(
    coordinator: str | None = None,
    process_count: int | None = None,
    process_id: int | None = None,
    *,
    start_seconds: int | None = None,
) -> None:
    """Joins this process to the others of its run, if the arguments or the environment say that there are any.

    Must come before anything that asks JAX for devices. A second call does nothing.

    Args:
      coordinator: "HOST:PORT" of process 0, $MMJAX_COORDINATOR by default.
      process_count: how many processes there are, $MMJAX_PROCESS_COUNT by default.
      process_id: which of them this is, from 0 on, $MMJAX_PROCESS_ID by default.
      start_seconds: how long to wait for the others, `START_SECONDS` by default.

    Where the launcher says who is who, and the others do not come, ends the process with code 2 and one line.

    Raises:
      UserError: where only some of the three are given, or one of them is wrong, or not all processes come.
    """
    if jax.distributed.is_initialized():
        return
    given = {
        "--coordinator": coordinator or os.environ.get("MMJAX_COORDINATOR") or None,
        "--process_count": _number("--process_count", process_count),
        "--process_id": _number("--process_id", process_id),
    }
    options: dict[str, Any] = {}
    if any(value is not None for value in given.values()):
        _check(given)
        if given["--process_count"] == 1:
            return
        names = ("coordinator_address", "num_processes", "process_id")
        options = dict(zip(names, given.values(), strict=True))
    elif not _launched_with_others():
        return
    seconds = START_SECONDS if start_seconds is None else start_seconds
    if options:
        roll_call(**options, seconds=seconds)
    where = f"--coordinator={given['--coordinator']}" if options else "this cluster"
    remedy = "start the same command on every host, with one address, one count and each number once"
    try:
        with _deadline(seconds, UserError(where, f"not all processes came within {seconds} s", remedy)):
            jax.distributed.initialize(**options, initialization_timeout=seconds + 60)
    except (RuntimeError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise UserError(where, f"the processes did not meet ({first})", remedy) from error
    catch_abort()


@contextlib.contextmanager
def _deadline(seconds: int, error: UserError) -> Iterator[None]:
    """Ends the process with one line when the time is over: JAX would abort it with a stack of C++ functions."""

    def end():
        print(f"mmjax: error: {error}", file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _number(flag: str, value: int | None) -> int | None:
    text = os.environ.get(_VARIABLES[flag]) if value is None else value
    if text is None or text == "":
        return None
    try:
        return int(text)
    except ValueError as error:
        raise UserError(_VARIABLES[flag], f"{text!r} is not a number", "give a whole number") from error


def _check(given: dict[str, str | int | None]) -> None:
    for flag, value in given.items():
        if value is None and given["--process_count"] != 1:
            others = ", ".join(name for name, other in given.items() if other is not None)
            raise UserError(flag, f"is missing beside {others}", f"give it, or the variable {_VARIABLES[flag]}")
    count, number, address = given["--process_count"], given["--process_id"], given["--coordinator"]
    if not isinstance(count, int) or count < 1:
        raise UserError("--process_count", f"{count} processes cannot train", "give at least 1")
    if isinstance(number, int) and not 0 <= number < count:
        raise UserError("--process_id", f"{number} is none of {count} processes", f"give 0 to {count - 1}")
    if isinstance(address, str) and not (":" in address and address.rpartition(":")[2].isdigit()):
        raise UserError("--coordinator", f"{address!r} is no address", "give HOST:PORT of process 0")


def _launched_with_others() -> bool:
    """Whether a launcher that JAX knows started this process as one of several."""
    # Not SLURM_NTASKS, which is also set in a batch script outside `srun`, where nobody else starts.
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
    # A Cloud TPU VM outside GKE knows the other workers of its slice from its metadata server alone.
    on_tpu = any(pathlib.Path(device).exists() for device in ("/dev/accel0", "/dev/vfio/0"))
    return on_tpu and "," in _worker_endpoints()


def _worker_endpoints() -> str:
    request = urllib.request.Request(_METADATA, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:
            return reply.read().decode()
    except OSError:
        return ""  # not a machine of Google Cloud
