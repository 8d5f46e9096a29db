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


def is_address(place: str) -> bool:
    """Whether `place` is an address with a protocol, and not a path of this machine."""
    return "://" in place


def join(folder: str, name: str) -> str:
    """The place of `name` in a folder, unless the name is a place of its own."""
    if is_address(name) or os.path.isabs(name):
        return name
    return f"{folder.rstrip('/')}/{name}" if is_address(folder) else os.path.normpath(os.path.join(folder, name))


def parent(place: str) -> str:
    """The folder of a file."""
    return place.rpartition("/")[0] if is_address(place) else os.path.dirname(os.path.abspath(place))


def read(place: str, offset: int = 0, size: int | None = None) -> bytes:
    """The bytes of a file, or a part of them. Raises OSError."""
    with open_file(place) as file:
        if offset:
            file.seek(offset)
        return file.read() if size is None else file.read(size)


def open_file(place: str) -> IO[bytes]:
    """Opens a file for reading. Raises OSError."""
    if not is_address(place):
        return open(place, "rb")
    return _system(place).open(place, "rb")


def exists(place: str) -> bool:
    with _errors(place):
        return _system(place).exists(place) if is_address(place) else os.path.exists(place)


def is_folder(place: str) -> bool:
    with _errors(place):
        return _system(place).isdir(place) if is_address(place) else os.path.isdir(place)


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
            for place, folders, names in os.walk(folder, followlinks=True):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                for name in names:
                    path = pathlib.Path(place, name)
                    with contextlib.suppress(OSError):
                        sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    for name in sorted(sizes):
        if not any(part.startswith(".") for part in name.split("/")):
            yield name, sizes[name]


@contextlib.contextmanager
def _errors(place: str) -> Iterator[None]:
    """Whatever a bucket's library raises for a place that cannot be listed becomes one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        problem = f"{place!r} cannot be read: {type(error).__name__}: {error}"
        raise UserError("--source", problem, "check the address, and that you may read it") from None


def _system(place: str) -> Any:
    protocol = place.partition("://")[0]
    try:
        return _opened(protocol)
    except ImportError:
        package = _EXTRAS.get(protocol, "fsspec")
        remedy = f"pip install 'mmjax[buckets]', or pip install {package}"
        raise UserError("--source", f"{place!r} needs the package {package}", remedy) from None
    except ValueError as error:
        raise UserError("--source", f"{place!r}: {error}", "give a path, or an address like gs://…") from None


@functools.cache
def _opened(protocol: str) -> Any:
    import fsspec

    return fsspec.filesystem(protocol)
