"""Files in folders and in buckets: a path, or an address like gs://bucket/folder that fsspec opens."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
from collections.abc import Iterator
from typing import IO, Any

from mmjax.errors import UserError

# What must be installed for an address, beside fsspec.
_EXTRAS = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs"}


def is_address(uri: str) -> bool:
    """Whether `place` is an address with a protocol, and not a path of this machine."""
    return "://" in uri


def join(folder: str, name: str) -> str:
    """The place of `name` in a folder, unless the name is a place of its own."""
    if is_address(name) or os.path.isabs(name):
        return name
    return f"{folder.rstrip('/')}/{name}" if is_address(folder) else os.path.normpath(os.path.join(folder, name))


def parent(uri: str) -> str:
    """The folder of a file."""
    return uri.rpartition("/")[0] if is_address(uri) else os.path.dirname(os.path.abspath(uri))


def read(uri: str, offset: int = 0, size: int | None = None) -> bytes:
    """The bytes of a file, or a part of them. Raises OSError."""
    with open_file(uri) as file:
        if offset:
            file.seek(offset)
        return file.read() if size is None else file.read(size)


def open_file(uri: str) -> IO[bytes]:
    """Opens a file for reading. Raises OSError."""
    if not is_address(uri):
        return open(uri, "rb")
    return _system(uri).open(uri, "rb")


def exists(uri: str) -> bool:
    with _errors(uri):
        return _system(uri).exists(uri) if is_address(uri) else os.path.exists(uri)


def is_folder(uri: str) -> bool:
    with _errors(uri):
        return _system(uri).isdir(uri) if is_address(uri) else os.path.isdir(uri)


def walk(folder: str) -> Iterator[tuple[str, int]]:
    """Yields (path relative to the folder, size) of all files below it, sorted; hidden ones are left out."""
    with _errors(folder):
        if is_address(folder):
            system = _system(folder)
            root = system._strip_protocol(folder).rstrip("/")
            found = system.find(root, detail=True)
            sizes = {name[len(root) :].lstrip("/"): int(entry.get("size") or 0) for name, entry in found.items()}
        else:
            sizes = {}
            for uri, folders, names in os.walk(folder, followlinks=True):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                for name in names:
                    path = pathlib.Path(uri, name)
                    with contextlib.suppress(OSError):
                        sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    for name in sorted(sizes):
        if not any(part.startswith(".") for part in name.split("/")):
            yield name, sizes[name]


@contextlib.contextmanager
def _errors(uri: str) -> Iterator[None]:
    """Whatever a bucket's library raises for a place that cannot be listed becomes one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        problem = f"{uri!r} cannot be read: {type(error).__name__}: {error}"
        raise UserError("--source", problem, "check the address, and that you may read it") from None


def _system(uri: str) -> Any:
    protocol = uri.partition("://")[0]
    try:
        return _opened(protocol)
    except ImportError:
        package = _EXTRAS.get(protocol, "fsspec")
        remedy = f"pip install 'mmjax[buckets]', or pip install {package}"
        raise UserError("--source", f"{uri!r} needs the package {package}", remedy) from None
    except ValueError as error:
        raise UserError("--source", f"{uri!r}: {error}", "give a path, or an address like gs://…") from None


@functools.cache
def _opened(protocol: str) -> Any:
    import fsspec

    return fsspec.filesystem(protocol)
