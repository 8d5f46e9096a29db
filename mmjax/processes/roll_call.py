"""Who has come: before the processes of a run meet through JAX, process 0 counts them, and says who is missing.

JAX alone would end all that came after the time, with a stack of C++ functions and no word of who is late. The roll
call uses the coordinator's port for a moment, before JAX does.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time

from mmjax.errors import UserError

_HELLO = "mmjax process"
_REMEDY = "start the same command on every host, with one address, one count and each number once"
_PAUSE = 0.2


def roll_call(coordinator_address: str, num_processes: int, process_id: int, seconds: float) -> None:
    """Returns in every process when all have come.

    Args:
      coordinator_address, num_processes, process_id: as for `jax.distributed.initialize`.
      seconds: how long they wait for each other.

    Raises:
      UserError: in all that came, naming those that did not within the time.
    """
    if process_id == 0:
        late = _answer(coordinator_address, num_processes, seconds)
    else:
        late = _report(coordinator_address, num_processes, process_id, seconds)
    if late is not None:
        raise UserError(f"--coordinator={coordinator_address}", late, _REMEDY)


def _answer(coordinator: str, count: int, seconds: float) -> str | None:
    """Process 0: hears who comes, and tells all of them when they are complete, or who is missing."""
    end = time.monotonic() + seconds
    port = int(coordinator.rpartition(":")[2])
    lines: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(port, coordinator))
        while len(lines) < count - 1 and time.monotonic() < end:
            listener.settimeout(max(0.01, end - time.monotonic()))
            try:
                line, _ = listener.accept()
            except TimeoutError:
                break
            stack.enter_context(line)
            said = _hear(line, min(5.0, max(0.01, end - time.monotonic())))
            if said and said.get("hello") == _HELLO and said.get("count") == count:
                lines[said["number"]] = line  # a process that was started again takes the place of the first
        missing = sorted(set(range(1, count)) - set(lines))
        late = f"{_names(missing, count)} did not come within {seconds:g} s" if missing else None
        for line in lines.values():
            with contextlib.suppress(OSError):
                line.sendall(json.dumps({"late": late}).encode() + b"\n")
    return late


def _report(coordinator: str, count: int, number: int, seconds: float) -> str | None:
    """Any other process: says that it is there, and hears how it went."""
    host, _, port = coordinator.rpartition(":")
    # Process 0 itself may start at the end of its time, and then has as much again.
    end = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5) as line:
                hello = {"hello": _HELLO, "number": number, "count": count, "host": socket.gethostname()}
                line.sendall(json.dumps(hello).encode() + b"\n")
                said = _hear(line, seconds + 10)
                if said is not None:
                    return said["late"]
        except OSError:
            pass
        if time.monotonic() > end:
            return f"process 0 of {count}, which the others look for there, did not come within {seconds:g} s"
        time.sleep(_PAUSE)


def _listen(port: int, coordinator: str) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
        return socket.create_server(("", port), backlog=4096)
    except OSError as error:
        problem = f"process 0 cannot listen on port {port} ({error.strerror})"
        raise UserError(f"--coordinator={coordinator}", problem, "choose a free port") from error


def _hear(line: socket.socket, seconds: float) -> dict | None:
    """One line of JSON; None where the other end says something else, or nothing."""
    line.settimeout(seconds)
    try:
        with line.makefile("rb") as file:
            said = json.loads(file.readline(1000))
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) else None


def _names(missing: list[int], count: int) -> str:
    shown = ", ".join(map(str, missing[:8])) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
    return f"process {shown} of {count}" if len(missing) == 1 else f"processes {shown} of {count}"
