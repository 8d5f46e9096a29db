"""Standard output and error that survive closed pipes, lost terminals and ASCII locales."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from typing import Any

from mmjax.errors import RunError
from mmjax.host.ending import write_line


def open_standard_streams() -> None:
    """Replaces `sys.stdout` and `sys.stderr`: if their reader is gone, the command goes on without it.

    A closed stream (`>&-`) becomes /dev/null, so that no file that is opened later gets its number.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = _reopen(sys.stdout, 1)
    sys.stderr = _reopen(sys.stderr, 2)


def replace_unencodable() -> None:
    """Makes `sys.stdout` replace characters that its encoding lacks, such as box-drawing characters in ASCII."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None and getattr(sys.stdout, "errors", None) == "strict":
        reconfigure(errors="replace")


def _reopen(stream: Any, descriptor: int) -> Any:
    raw = _Output(descriptor, "wb", closefd=False)
    if stream is None:
        return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "replace")
    stream.flush()
    errors = "replace" if stream.errors == "strict" else stream.errors
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        stream.encoding,
        errors,
        line_buffering=stream.line_buffering or stream.isatty(),
        write_through=stream.write_through,
    )


class _Output(io.FileIO):
    """File of a standard stream that becomes /dev/null after an error.

    The command goes on if a pipe was closed or a terminal is lost. On other errors, such as a full disk, `write` raises
    a RunError once, if the stream is standard output.
    """

    def write(self, data: Any) -> int:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            lost = error.errno == errno.EPIPE or (
                error.errno == errno.EIO and stat.S_ISCHR(os.fstat(self.fileno()).st_mode)
            )
            with open(os.devnull, "wb") as null:
                os.dup2(null.fileno(), self.fileno())
            if self.fileno() == 1 and not lost:
                raise RunError(f"standard output: {error.strerror}") from None
            if self.fileno() == 1:
                write_line("standard output was closed; the command goes on without it")
            return len(memoryview(data).cast("B"))
