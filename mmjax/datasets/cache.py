"""Cache of prepared data: each folder is written once, atomically, by one process while others wait."""

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
    compute_checksum: Callable[[pathlib.Path], str],
) -> pathlib.Path:
    """Returns `folder`, after calling `write` if it does not exist.

    The data is written to a sibling folder that is renamed at the end, so an existing `folder` is always complete. One
    process writes; others on the same machine wait for it.

    Args:
      folder: final location of the prepared data.
      write: writes into a given empty folder and returns the subfolder with the finished data.
      compute_checksum: maps the finished folder to its checksum, which is stored in it; for example `records_checksum`.

    Raises:
      UserError: if the folder cannot be written.
    """
    if folder.exists():
        return folder
    try:
        _make_folder(folder.parent)
        with _locked(folder.with_name(folder.name + ".lock")):
            if not folder.exists():
                # A partial folder is stale: the process that wrote it no longer holds the lock.
                partial = folder.with_name(folder.name + ".partial")
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                finished = write(partial)
                (finished / _CHECKSUM_FILE).write_text(compute_checksum(finished) + "\n")
                finished.rename(folder)
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT):
            raise
        remedy = "set data.cache or the variable MMJAX_CACHE to a writable folder with enough space"
        raise UserError("data.cache", f"{str(folder)!r} cannot be written: {error.strerror}", remedy) from None
    return folder


def _make_folder(folder: pathlib.Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:
        # File systems that do not support new folders, such as /proc, raise FileNotFoundError.
        raise PermissionError(errno.EACCES, "cannot create a folder") from error


def checksum(folder: pathlib.Path) -> str:
    """Reads the checksum stored at preparation."""
    return (folder / _CHECKSUM_FILE).read_text().strip()


def records_checksum(folder: pathlib.Path) -> str:
    """Computes the SHA-256 of all records that TFDS wrote to a folder, split by split, in order.

    The checksum covers record contents instead of file bytes: the order of a record's fields in its serialised protocol
    buffer varies between processes.
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
    """Holds an exclusive file lock, which the operating system releases even if the process is killed."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
