"""Prepared data in a folder of the user's: made once, whole or not at all, by one process while others wait."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import pathlib
import shutil
from collections.abc import Callable, Iterator

import numpy as np

from mmjax.errors import UserError

_CHECKSUM_FILE = "checksum.sha256"


def prepare_once(
    folder: pathlib.Path,
    write: Callable[[pathlib.Path], pathlib.Path],
    summarise: Callable[[pathlib.Path], str],
) -> pathlib.Path:
    """Returns `folder`, made by `write` unless it is there.

    The data is written beside `folder` and renamed to it at the end, so a `folder` that exists is finished. One process
    writes, the others on the machine wait for it.

    Args:
      folder: where the prepared data belongs.
      write: is given an empty folder, and returns the folder in it that holds the finished data.
      summarise: makes the checksum of the finished data, which is kept with it; for example `records_checksum`.

    Raises:
      UserError: if the folder cannot be written.
    """
    if folder.exists():
        return folder
    try:
        _make(folder.parent)
        with _locked(folder.with_name(folder.name + ".lock")):
            if not folder.exists():
                # Whoever left a partial folder is gone, since we hold its lock.
                partial = folder.with_name(folder.name + ".partial")
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                finished = write(partial)
                (finished / _CHECKSUM_FILE).write_text(summarise(finished) + "\n")
                finished.rename(folder)
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT):
            raise
        remedy = "set the config's `cache` or the variable MMJAX_CACHE to a folder with space that you may write"
        raise UserError("data.cache", f"{str(folder)!r} cannot be written: {error.strerror}", remedy) from None
    return folder


def _make(folder: pathlib.Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:
        # So say file systems that take no folders at all, like /proc.
        raise PermissionError(errno.EACCES, "no folder can be made there") from error


def checksum(folder: pathlib.Path) -> str:
    """The checksum of prepared data, as it was when it was prepared."""
    return (folder / _CHECKSUM_FILE).read_text().strip()


def records_checksum(folder: pathlib.Path) -> str:
    """sha256 over all records that TFDS wrote to a folder, split by split, in their order.

    It covers what is in the records and not the bytes of the files: protocol buffers write the fields of a record in an
    order that changes from process to process.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(folder))
    digest = hashlib.sha256()
    for split in sorted(builder.info.splits):
        source = builder.as_data_source(split)
        for index in range(len(source)):
            record = source[index]
            for name in sorted(record):
                value = np.asarray(record[name])
                digest.update(f"{split} {index} {name} {value.dtype} {value.shape} ".encode() + value.tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """Holds an exclusive lock that the operating system releases when the process ends, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
