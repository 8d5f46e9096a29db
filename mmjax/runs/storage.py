"""Failures of the file system during a run: one line and an exit code, instead of a traceback of many threads."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import re
import threading
from collections.abc import Iterator

from mmjax.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)
_LOST = (errno.ENOENT, errno.ESTALE, errno.EIO, errno.ENXIO, errno.ENODEV)
_TEXT = {number: re.compile(re.escape(os.strerror(number)), re.I) for number in (*_FULL, *_REFUSED, *_LOST)}


@contextlib.contextmanager
def report_storage_errors(workdir: pathlib.Path) -> Iterator[None]:
    """Converts errors of files in the workdir to one line.

    Checkpoints are written by threads of Orbax and TensorStore, whose errors are raised here again; the threads' own
    tracebacks are not printed.

    Raises:
      UserError: if a file or folder is not writable.
      SystemExit: with code 1, if the disk is full or fails, or the workdir was deleted.
    """
    hook = threading.excepthook
    threading.excepthook = lambda args: None if _errno(args.exc_value, workdir) else hook(args)
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        number = _errno(error, workdir)
        if number is None:
            raise
        reason = os.strerror(number)
        path = getattr(error, "filename", None) or workdir
        if not workdir.exists():
            raise SystemExit(f"mmjax: stopped: {workdir} was deleted while the run was training") from None
        if number in _REFUSED:
            raise UserError("--workdir", f"{path} cannot be written: {reason}", "mend it, or give another") from None
        remedy = "free some space" if number in _FULL else "check the disk"
        remedy += ", then run the same command to resume from the newest checkpoint"
        raise SystemExit(f"mmjax: stopped: {path}: {reason}; {remedy}") from None
    finally:
        threading.excepthook = hook


def _errno(error: BaseException | None, workdir: pathlib.Path) -> int | None:
    """Returns the error number if `error`, or an error that it wraps, concerns a file in the workdir.

    TensorStore raises ValueErrors that have the number only as text.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _TEXT:
            inside = str(workdir.absolute()) in str(pathlib.Path(str(error.filename or workdir)).absolute())
            return error.errno if inside else None
        if str(workdir.absolute()) in str(error):
            for number, pattern in _TEXT.items():
                if pattern.search(str(error)):
                    return number
        error = error.__cause__ or error.__context__
    return None
