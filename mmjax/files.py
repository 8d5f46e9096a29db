"""Bounded file reads, atomic file writes, JSON without NaN, and the cache folder."""

from __future__ import annotations

import errno
import json
import math
import os
import pathlib
import stat
from typing import IO, Any

from mmjax.errors import UserError

MAX_BYTES = 2**30
"""Largest size in bytes of a file that is read as a whole. A sparse file of any size needs no disk space."""


def user_path(text: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the path with a leading `~` or `~user` expanded; shells leave the `~` of `--flag=~/x` to the program.

    Raises:
      UserError: if the path is empty or contains a null byte, or the user's home folder is unknown.
    """
    if not os.fspath(text) or "\0" in os.fspath(text):
        problem = "contains a null byte" if os.fspath(text) else "is an empty path"
        raise UserError(repr(text), problem, "give the path of a file or folder")
    path = pathlib.Path(os.path.expanduser(text))
    home = path.parts[0] if path.parts else ""
    if home.startswith("~") and not os.path.exists(home):
        raise UserError(str(text), f"the home folder {home!r} is unknown", "give the full path")
    return path


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Opens a regular file for reading.

    Raises:
      OSError: if it cannot be opened, or is a pipe, a socket or a device, which may block or never end.
      ValueError: if the path contains a null byte.
    """
    # Do not open a pipe or device at all: opening it may block or have an effect.
    _check_regular(os.stat(path), path)
    # Without waiting for data, which some files below /proc never have.
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: SIM115
    try:
        # Again, since the file may have been replaced.
        _check_regular(os.fstat(file.fileno()), path)
    except OSError:
        file.close()
        raise
    return file


def _check_regular(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_bounded(file: IO[bytes], size: int | None = None) -> bytes:
    """Reads `size` bytes or the rest of a file. Raises OSError if these are more than `MAX_BYTES`."""
    data = file.read(MAX_BYTES + 1 if size is None else min(size, MAX_BYTES + 1))
    if data is None:
        raise OSError("the file has no data yet")
    if len(data) > MAX_BYTES:
        raise OSError(f"larger than {MAX_BYTES / 2**30:g} GiB")
    return data


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file.

    Raises:
      OSError: if it cannot be read, or is not a regular file.
      ValueError: if it is not JSON in UTF-8, or is nested too deeply.
    """
    with open_regular(path) as file:
        data = read_bounded(file)
    try:
        return json.loads(data.decode())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def cache_folder(configured: str = "") -> pathlib.Path:
    """Returns the folder of prepared data and compiled programs: `configured`, $MMJAX_CACHE or ~/.cache/mmjax.

    Raises:
      UserError: if the home folder that it names is unknown.
    """
    return user_path(configured or os.environ.get("MMJAX_CACHE", "") or "~/.cache/mmjax").absolute()


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a text file through a temporary file and a rename, so that a partial file is never visible."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON with sorted keys, atomically; NaN and infinity become null."""
    write_atomically(path, to_json(value, indent=2, sort_keys=True) + "\n")


def load_json(path: pathlib.Path, remedy: str, where: str = "") -> Any:
    """Reads a JSON file that a user named.

    Args:
      path: file to read.
      remedy: what to do about a damaged file, for the message.
      where: flag that names the file's folder; by default the message begins with the path.

    Raises:
      UserError: if the file cannot be read or is not JSON.
    """
    try:
        return read_json(path)
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
    except ValueError as error:
        problem = f"is not JSON: {error}"
    raise UserError(where or str(path), f"{path} {problem}" if where else problem, remedy)


def to_json(value: Any, **options: Any) -> str:
    """Serialises to JSON; NaN and infinity, which JSON lacks, become null. `options` are those of `json.dumps`."""
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
