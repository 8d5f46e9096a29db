"""Roll call: process 0 counts the processes of a run before JAX connects them, and names the missing ones.

After a timeout, JAX alone would abort the connected processes, with a C++ stack trace that does not name the missing
ones. The roll call uses the coordinator's port before JAX does. Its connections stay open until JAX has connected the
processes: if one closes, its process has ended.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import threading
import time
from collections.abc import Iterator

from mmjax.errors import Restart, UserError
from mmjax.host.ending import end_process, write_line

_HELLO = "mmjax process"
REMEDY = "start the same command on every host, with the same address and count, and a different process index on each"
_AGAIN = "start the same command again on every host"
_RETRY_SECONDS = 0.2
_RESTART_SECONDS = 5.0
"""Seconds in which a process that ended may be restarted and connect again."""
_NOTICE_SECONDS = 10.0
"""Seconds after which a waiting process prints which ones it waits for."""
_DONE = b'{"done": true}\n'


def roll_call(coordinator_address: str, num_processes: int, process_id: int, seconds: float) -> None:
    """Blocks until all processes have connected to process 0. See `connected`."""
    with connected(coordinator_address, num_processes, process_id, seconds):
        pass


@contextlib.contextmanager
def connected(coordinator_address: str, num_processes: int, process_id: int, seconds: float) -> Iterator[None]:
    """Waits until all processes have connected to process 0, and keeps the connections open within a block.

    If a process ends within the block, all others name it and exit with code 3.

    Args:
      coordinator_address, num_processes, process_id: as for `jax.distributed.initialize`.
      seconds: timeout.

    Raises:
      UserError: in all connected processes, with the indices of the missing ones.
      Restart: if a process ends before all have connected.
    """
    address, count = coordinator_address, num_processes
    with contextlib.ExitStack() as stack:
        if process_id == 0:
            peers = _serve(stack, address, count, seconds)
        else:
            peers = {0: _report(stack, address, count, process_id, seconds)}
        finished = threading.Event()
        monitor = threading.Thread(target=_monitor, args=(peers, count, finished), name="start-up", daemon=True)
        monitor.start()
        try:
            yield
            for connection, _ in peers.values():
                with contextlib.suppress(OSError):
                    connection.sendall(_DONE)
        finally:
            finished.set()
            monitor.join()


Peers = dict[int, tuple[socket.socket, str]]
"""{process: connection, host}."""


def _serve(stack: contextlib.ExitStack, address: str, count: int, seconds: float) -> Peers:
    """Waits in process 0 for the others and sends them the outcome."""
    start = time.monotonic()
    deadline, notice = start + seconds, start + _NOTICE_SECONDS
    peers: Peers = {}
    lost: dict[int, tuple[str, float]] = {}
    problem: UserError | Restart | None = None
    with _listen(address) as listener:
        listener.settimeout(0.1)
        while len(peers) < count - 1 and problem is None and time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                _accept(stack, listener, count, peers)
            for process in [process for process, (connection, _) in peers.items() if _is_closed(connection)]:
                lost[process] = peers.pop(process)[1], time.monotonic()
            missing = sorted(set(range(1, count)) - set(peers))
            if missing and time.monotonic() > notice:
                write_line(f"waiting for {_process_names(missing, count)} to connect to {address}")
                notice = time.monotonic() + 2 * _NOTICE_SECONDS
            for process, (host, since) in lost.items():
                if process in missing and time.monotonic() - since > min(_RESTART_SECONDS, seconds / 2):
                    problem = Restart(f"{_ended(process, count, host)}; {_AGAIN}")
    missing = sorted(set(range(1, count)) - set(peers))
    if missing and problem is None:
        text = f"{_process_names(missing, count)} did not connect within {seconds:g} s"
        problem = UserError(f"--coordinator={address}", text, REMEDY)
    late = problem.problem if isinstance(problem, UserError) else None
    outcome = {"late": late, "lost": str(problem) if problem and not late else None, "host": socket.gethostname()}
    for connection, _ in peers.values():
        with contextlib.suppress(OSError):
            connection.sendall(json.dumps(outcome).encode() + b"\n")
    if problem is not None:
        raise problem
    return peers


def _accept(stack: contextlib.ExitStack, listener: socket.socket, count: int, peers: Peers) -> None:
    connection, _ = listener.accept()
    stack.enter_context(connection)
    hello = _receive(connection, 5.0)
    if hello and hello.get("hello") == _HELLO and hello.get("count") == count:
        # A restarted process replaces its first connection.
        peers[hello["number"]] = connection, str(hello.get("host"))


def _report(
    stack: contextlib.ExitStack, address: str, count: int, index: int, seconds: float
) -> tuple[socket.socket, str]:
    """Reports this process to process 0, and waits for the outcome. Returns its connection and host."""
    host, _, port = address.rpartition(":")
    start = time.monotonic()
    # Process 0 may start just before this deadline and then waits up to `seconds` for the others.
    deadline, notice, lost = start + seconds, start + _NOTICE_SECONDS, False
    while True:
        with contextlib.suppress(OSError):
            connection = socket.create_connection((host.strip("[]"), int(port)), timeout=5)
            stack.enter_context(connection)
            hello = {"hello": _HELLO, "number": index, "count": count, "host": socket.gethostname()}
            connection.sendall(json.dumps(hello).encode() + b"\n")
            outcome = _receive(connection, seconds + 10)
            if outcome is not None and outcome.get("late"):
                raise UserError(f"--coordinator={address}", outcome["late"], REMEDY)
            if outcome is not None and outcome.get("lost"):
                raise Restart(outcome["lost"])
            if outcome is not None:
                return connection, str(outcome.get("host"))
            if not lost:
                deadline, lost = min(deadline, time.monotonic() + _RESTART_SECONDS), True
        now = time.monotonic()
        if now > deadline and lost:
            raise Restart(f"{_ended(0, count, host)}; {_AGAIN}")
        if now > deadline:
            problem = f"process 0 of {count} did not listen on this address within {seconds:g} s"
            raise UserError(f"--coordinator={address}", problem, REMEDY)
        if now > notice:
            write_line(f"waiting for process 0 of {count} at {address}")
            notice = now + 2 * _NOTICE_SECONDS
        time.sleep(_RETRY_SECONDS)


def _monitor(peers: Peers, count: int, finished: threading.Event) -> None:
    """Ends this process if another one ends before JAX has connected all; process 0 passes the name on."""
    with selectors.DefaultSelector() as selector:
        for process, (connection, host) in peers.items():
            selector.register(connection, selectors.EVENT_READ, (process, host))
        while selector.get_map() and not finished.is_set():
            for key, _ in selector.select(timeout=0.1):
                process, host = key.data
                message = _receive(key.fileobj, 5.0)  # type: ignore[arg-type]
                if message is not None and "done" in message:
                    selector.unregister(key.fileobj)
                    continue
                failure = str(message["lost"]) if message else _ended(process, count, host)
                for other, (connection, _) in peers.items():
                    if other != process and not message:
                        with contextlib.suppress(OSError):
                            connection.sendall(json.dumps({"lost": failure}).encode() + b"\n")
                end_process(Restart.exit_code, f"stopped: {failure}; {_AGAIN}")


def _ended(process: int, count: int, host: str) -> str:
    return f"process {process} of {count} on {host} ended during start-up"


def _listen(address: str) -> socket.socket:
    port = int(address.rpartition(":")[2])
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
        return socket.create_server(("", port), backlog=4096)
    except OSError as error:
        problem = f"process 0 cannot listen on port {port} ({error.strerror})"
        raise UserError(f"--coordinator={address}", problem, "choose a free port") from error


def _is_closed(connection: socket.socket) -> bool:
    """Returns True if the other end has closed a connection on which nothing is to be received yet."""
    connection.settimeout(0)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _receive(connection: socket.socket, seconds: float) -> dict | None:
    """Reads one line of JSON. Returns None after a timeout or if the line is not a JSON object."""
    connection.settimeout(seconds)
    line = b""
    try:
        # Byte by byte, so that later lines stay in the socket.
        while not line.endswith(b"\n") and len(line) < 1000 and (byte := connection.recv(1)):
            line += byte
        message = json.loads(line)
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) else None


def _process_names(missing: list[int], count: int) -> str:
    shown = ", ".join(map(str, missing[:8])) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
    return f"process {shown} of {count}" if len(missing) == 1 else f"processes {shown} of {count}"
