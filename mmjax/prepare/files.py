"""File access by local path, or by URI such as gs://bucket/folder through fsspec."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
from collections.abc import Iterator
from typing import IO, Any

from mmjax.errors import UserError
from mmjax.files import open_regular, read_bounded

# Package that fsspec needs for each protocol.
_EXTRAS = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs"}


def is_remote(uri: str) -> bool:
    """Returns True for a URI with a protocol, False for a local path."""
    return "://" in uri


def join(folder: str, name: str) -> str:
    """Joins a folder and a file name. A URI or an absolute path is returned unchanged."""
    if is_remote(name) or os.path.isabs(name):
        return name
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else os.path.normpath(os.path.join(folder, name))


def is_inside(uri: str, folder: str) -> bool:
    """Returns True if a file is below a folder, after following symbolic links and `..`."""
    if is_remote(folder):
        return uri.startswith(folder.rstrip("/") + "/") and ".." not in uri.split("/")
    return not is_remote(uri) and pathlib.Path(os.path.realpath(uri)).is_relative_to(os.path.realpath(folder))


def parent(uri: str) -> str:
    """Returns the folder of a file."""
    return uri.rpartition("/")[0] if is_remote(uri) else os.path.dirname(os.path.abspath(uri))


def read(uri: str, offset: int = 0, size: int | None = None) -> bytes:
    """Reads a file, or `size` bytes from `offset`. Raises OSError, also if these are more than 1 GiB."""
    with open_file(uri) as file:
        if offset:
            file.seek(offset)
        return read_bounded(file, size)


def open_file(uri: str) -> IO[bytes]:
    """Opens a file for reading. Raises OSError, also for pipes and devices, which may block or never end."""
    if not is_remote(uri):
        return open_regular(uri)
    return _system(uri).open(uri, "rb")


def exists(uri: str) -> bool:
    """Returns True if the file or folder exists. Raises UserError if the bucket cannot be read."""
    with _user_errors(uri):
        return _system(uri).exists(uri) if is_remote(uri) else os.path.exists(uri)


def is_folder(uri: str) -> bool:
    """Returns True for a folder. Raises UserError if the bucket cannot be read."""
    with _user_errors(uri):
        return _system(uri).isdir(uri) if is_remote(uri) else os.path.isdir(uri)


def walk(folder: str) -> Iterator[tuple[str, int]]:
    """Yields (relative path, size in bytes) of all files below a folder, sorted by path. Skips hidden files.

    Raises:
      UserError: if the folder cannot be read.
    """
    with _user_errors(folder):
        if is_remote(folder):
            system = _system(folder)
            root = system._strip_protocol(folder).rstrip("/")
            entries = system.find(root, detail=True)
            sizes = {name[len(root) :].lstrip("/"): int(entry.get("size") or 0) for name, entry in entries.items()}
        else:
            sizes = {}
            # {folder: real paths of it and of the folders that lead to it}. A link to one of these would never end.
            chains = {folder: {os.path.realpath(folder)}}
            for parent_path, folders, names in os.walk(folder, followlinks=True):
                chain = chains.pop(parent_path)
                paths = {name: os.path.join(parent_path, name) for name in sorted(folders) if not name.startswith(".")}
                folders[:] = [name for name, path in paths.items() if os.path.realpath(path) not in chain]
                chains |= {paths[name]: chain | {os.path.realpath(paths[name])} for name in folders}
                for name in names:
                    path = pathlib.Path(parent_path, name)
                    with contextlib.suppress(OSError):
                        sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    for name in sorted(sizes):
        if not any(part.startswith(".") for part in name.split("/")):
            yield name, sizes[name]


@contextlib.contextmanager
def _user_errors(uri: str) -> Iterator[None]:
    """Converts any exception of a file system library to a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        problem = f"cannot read {uri!r}: {type(error).__name__}: {error}"
        raise UserError("--source", problem, "check the URI and your permissions") from None


def _system(uri: str) -> Any:
    """Returns the fsspec file system of a URI. Raises UserError if its package is not installed."""
    protocol = uri.partition("://")[0]
    try:
        return _open_system(protocol)
    except ImportError:
        package = _EXTRAS.get(protocol, "fsspec")
        remedy = f"pip install 'mmjax[buckets]' or {package}"
        raise UserError("--source", f"{uri!r} needs the package {package}", remedy) from None
    except ValueError as error:
        raise UserError("--source", f"{uri!r}: {error}", "give a path, or a URI such as gs://bucket/folder") from None


@functools.cache
def _open_system(protocol: str) -> Any:
    import fsspec

    return fsspec.filesystem(protocol)
