"""Agreement between processes: all continue past a check, or none does."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import jax

from mmjax.errors import UserError

AGREE_SECONDS = 12 * 3600
"""How long a process waits for the others to prepare the data. One that died is noticed much earlier, by heartbeats."""

_meetings = itertools.count()


@contextlib.contextmanager
def agree_or_raise(what: str, seconds: int = AGREE_SECONDS) -> Iterator[None]:
    """Around a part that may refuse the user's input: all processes go on after it, or none does.

    So no process waits for ever in a collective that another one never enters, and none sees what another writes next.

    Args:
      what: names the part, for messages.
      seconds: how long to wait for the others.

    Raises:
      UserError: this process's own, or one that repeats what another process refused.
    """
    failure: UserError | None = None
    try:
        yield
    except UserError as error:
        failure = error
    if jax.process_count() > 1:
        failures = _exchange(what, str(failure or ""), seconds)
        for process, message in enumerate(failures):
            if message and failure is None:
                failure = UserError(f"process {process}", message, "all processes need the same command and files")
    if failure is not None:
        raise failure


def _exchange(what: str, message: str, seconds: int) -> list[str]:
    """Every process's message, in the order of their numbers. Goes over the coordinator and needs no device."""
    from jax._src import distributed

    client: Any = distributed.global_state.client
    # Names may be used once only, and all processes count alike.
    key = f"mmjax/{next(_meetings)}/{what}"
    client.key_value_set(f"{key}/{jax.process_index()}", message)
    try:
        client.wait_at_barrier(f"{key}/barrier", seconds * 1000)
    except RuntimeError as error:
        came = dict(client.key_value_dir_get(f"{key}/"))
        late = [process for process in range(jax.process_count()) if f"{key}/{process}" not in came]
        names = f"process {', '.join(map(str, late))} of {jax.process_count()}" if late else "another process"
        raise RuntimeError(f"{names} did not get past {what!r} within {seconds} s, or ended") from error
    found = dict(client.key_value_dir_get(f"{key}/"))
    return [found[f"{key}/{process}"] for process in range(jax.process_count())]
