"""Roll call: process 0 counts the processes of a run before JAX connects them, and names the missing ones.

After a timeout, JAX alone would abort the connected processes, with a C++ stack trace that does not name the missing
ones. The roll call uses the coordinator's port briefly, before JAX does.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time

from mmjax.errors import UserError

_HELLO = "mmjax process"
REMEDY = "start the same command on every host, with the same address and count, and a different process index on each"
_RETRY_SECONDS = 0.2


def roll_call(coordinator_address: str, num_processes: int, process_id: int, seconds: float) -> None:
    """Blocks until all processes have connected to process 0.

    Args:
      coordinator_address, num_processes, process_id: as for `jax.distributed.initialize`.
      seconds: timeout.

    Raises:
      UserError: in all connected processes, with the indices of the missing ones.
    """
    if process_id == 0:
        problem = _serve(coordinator_address, num_processes, seconds)
    else:
        problem = _report(coordinator_address, num_processes, process_id, seconds)
    if problem is not None:
        raise UserError(f"--coordinator={coordinator_address}", problem, REMEDY)


def _serve(coordinator: str, count: int, seconds: float) -> str | None:
    """Waits in process 0 for the others and sends them the outcome: None, or a message that names the missing ones."""
    deadline = time.monotonic() + seconds
    port = int(coordinator.rpartition(":")[2])
    connections: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(port, coordinator))
        while len(connections) < count - 1 and time.monotonic() < deadline:
            listener.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                break
            stack.enter_context(connection)
            hello = _receive(connection, min(5.0, max(0.01, deadline - time.monotonic())))
            if hello and hello.get("hello") == _HELLO and hello.get("count") == count:
                connections[hello["number"]] = connection  # a restarted process replaces its first connection
        missing = sorted(set(range(1, count)) - set(connections))
        problem = f"{_process_names(missing, count)} did not connect within {seconds:g} s" if missing else None
        for connection in connections.values():
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps({"late": problem}).encode() + b"\n")
    return problem


def _report(coordinator: str, count: int, index: int, seconds: float) -> str | None:
    """Reports this process to process 0 and returns the outcome: None, or a message that names the missing ones."""
    host, _, port = coordinator.rpartition(":")
    # Process 0 may start just before this deadline and then waits up to `seconds` for the others.
    deadline = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5) as connection:
                hello = {"hello": _HELLO, "number": index, "count": count, "host": socket.gethostname()}
                connection.sendall(json.dumps(hello).encode() + b"\n")
                outcome = _receive(connection, seconds + 10)
                if outcome is not None:
                    return outcome["late"]
        except OSError:
            pass
        if time.monotonic() > deadline:
            return f"process 0 of {count} did not listen on this address within {seconds:g} s"
        time.sleep(_RETRY_SECONDS)


def _listen(port: int, coordinator: str) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
        return socket.create_server(("", port), backlog=4096)
    except OSError as error:
        problem = f"process 0 cannot listen on port {port} ({error.strerror})"
        raise UserError(f"--coordinator={coordinator}", problem, "choose a free port") from error


def _receive(connection: socket.socket, seconds: float) -> dict | None:
    """Reads one line of JSON. Returns None after a timeout or if the line is not a JSON object."""
    connection.settimeout(seconds)
    try:
        with connection.makefile("rb") as file:
            message = json.loads(file.readline(1000))
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) else None


def _process_names(missing: list[int], count: int) -> str:
    shown = ", ".join(map(str, missing[:8])) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
    return f"process {shown} of {count}" if len(missing) == 1 else f"processes {shown} of {count}"
