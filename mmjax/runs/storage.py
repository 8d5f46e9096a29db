"""Reports file-system errors during a run in one line with an exit code, instead of tracebacks from many threads."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pathlib
import re
import sys
import threading
from collections.abc import Iterator

from mmjax.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)
_LOST = (errno.ENOENT, errno.ESTALE, errno.EIO, errno.ENXIO, errno.ENODEV)
_TEXT = {number: re.compile(re.escape(os.strerror(number)), re.I) for number in (*_FULL, *_REFUSED, *_LOST)}


@contextlib.contextmanager
def report_storage_errors(workdir: pathlib.Path) -> Iterator[None]:
    """Reports errors of files in the workdir in one line.

    Orbax and TensorStore write checkpoints in threads and raise their errors again in the main thread. After a failure,
    the tracebacks that these threads print and log, one per array, are therefore dropped.

    Raises:
      UserError: if a file or folder is not writable.
      SystemExit: with code 1, if the disk is full or fails, or the workdir was deleted.
    """
    silence = _Silence(workdir)
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        number = _errno(error, workdir)
        if number is None:
            silence.end()
            raise
        reason = os.strerror(number)
        path = getattr(error, "filename", None) or workdir
        # A pending save may have recreated the folder, so check for a file.
        if number == errno.ENOENT and not (workdir / "config.json").exists():
            raise SystemExit(f"mmjax: stopped: {workdir} was deleted while the run was training") from None
        if number in _REFUSED:
            raise UserError("--workdir", f"{path} cannot be written: {reason}", "make it writable") from None
        remedy = "free some space" if number in _FULL else "check the disk"
        remedy += ", then run the same command to resume from the newest checkpoint"
        raise SystemExit(f"mmjax: stopped: {path}: {reason}; {remedy}") from None
    except BaseException:
        silence.end()
        raise
    else:
        silence.end()


class _Silence:
    """Drops tracebacks of storage errors in the workdir, and of errors that they cause, until `end`."""

    def __init__(self, workdir: pathlib.Path):
        self.workdir = workdir
        self.loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
        for logger in self.loggers:
            logger.addFilter(self._keep)
        self.hooks = threading.excepthook, sys.unraisablehook
        threading.excepthook = lambda args: None if self._drop(args.exc_value) else self.hooks[0](args)
        sys.unraisablehook = lambda args: None if self._drop(args.exc_value) else self.hooks[1](args)

    def _keep(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and self._drop(record.exc_info[1]))

    def _drop(self, error: BaseException | None) -> bool:
        # After a failed save, TensorStore's callbacks raise "Event loop is closed" once per array.
        return _errno(error, self.workdir) is not None or str(error) == "Event loop is closed"

    def end(self) -> None:
        """Restores the hooks and loggers."""
        threading.excepthook, sys.unraisablehook = self.hooks
        for logger in self.loggers:
            logger.removeFilter(self._keep)


def _errno(error: BaseException | None, workdir: pathlib.Path) -> int | None:
    """Returns the error number if `error`, or an error that it wraps, concerns a file in the workdir.

    TensorStore raises ValueErrors that contain the description of the error number, but not the number itself.
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
