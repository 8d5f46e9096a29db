"""Agreement between processes: if one process rejects the user's input, all raise."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import jax

from mmjax.errors import Restart, UserError

AGREE_SECONDS = 12 * 3600
"""Timeout in seconds, long enough to prepare the data. JAX's heartbeats detect a dead process earlier."""

_barriers = itertools.count()


@contextlib.contextmanager
def agree_or_raise(what: str, seconds: int = AGREE_SECONDS) -> Iterator[None]:
    """Runs a block that may raise `UserError`: all processes continue after it, or all raise.

    Without it, a process could wait forever in a collective that another process, which raised, never enters. The
    barrier at its end also delays writes after the block until all processes have finished their reads inside it.

    Args:
      what: name of the block, for messages.
      seconds: timeout of the barrier.

    Raises:
      UserError: this process's own error, or a copy of another process's error.
      Restart: if a process does not reach the barrier within `seconds`.
    """
    failure: UserError | None = None
    try:
        yield
    except UserError as error:
        failure = error
    for process, message in enumerate(exchange(what, str(failure or ""), seconds)):
        if message and failure is None:
            failure = UserError(f"process {process}", message, "all processes need the same command and files")
    if failure is not None:
        raise failure


def exchange(what: str, message: str, seconds: int = AGREE_SECONDS) -> list[str]:
    """Returns every process's message, by process index. Uses the coordinator's key-value store, no device.

    Raises:
      RuntimeError: if a process does not send its message within `seconds`.
    """
    if jax.process_count() == 1:
        return [message]
    from jax._src import distributed

    client: Any = distributed.global_state.client
    # A barrier id can be used only once; all processes count their barriers in the same order.
    key = f"mmjax/{next(_barriers)}/{what}"
    client.key_value_set(f"{key}/{jax.process_index()}", message)
    try:
        client.wait_at_barrier(f"{key}/barrier", seconds * 1000)
    except RuntimeError as error:
        arrived = dict(client.key_value_dir_get(f"{key}/"))
        missing = [process for process in range(jax.process_count()) if f"{key}/{process}" not in arrived]
        names = f"process {', '.join(map(str, missing))} of {jax.process_count()}" if missing else "another process"
        raise Restart(f"stopped: {names} did not complete {what!r} within {seconds} s, or exited") from error
    messages = dict(client.key_value_dir_get(f"{key}/"))
    return [messages[f"{key}/{process}"] for process in range(jax.process_count())]
