"""Lock of a workdir: one training process at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator

from rich.console import Console

from mmjax.errors import UserError

NAME = ".lock"
"""Name of the lock file in the workdir. The file remains; the lock is released when its process closes it or exits."""

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def locked(workdir: pathlib.Path, console: Console) -> Iterator[None]:
    """Holds an exclusive lock on a workdir, which the operating system releases even after SIGKILL.

    Prints a warning instead if the file system does not support locks.

    Args:
      workdir: folder of the run, created if it does not exist.
      console: prints the warning.

    Raises:
      UserError: if another process holds the lock, or the folder cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        opened = open(workdir / NAME, "a+")  # noqa: SIM115
    except OSError as error:
        problem = f"{workdir} cannot be written: {error.strerror}"
        raise UserError("--workdir", problem, "give another folder") from None
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            problem = f"{workdir} is in use: {owner} trains in it"
            raise UserError("--workdir", problem, "wait for it, stop it, or give another workdir") from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            console.print(
                f"warning: {workdir} does not support locks; train with one process at a time", style="yellow"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
