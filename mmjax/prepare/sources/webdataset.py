"""WebDataset tar files: members whose names are equal up to the first dot form one example.

Member names are never used as paths to write to. Archives with links, devices, or names that escape the folder are
rejected anyway, because they are probably malicious.
"""

from __future__ import annotations

import gzip
import hashlib
import pathlib
import tarfile
from collections.abc import Iterator, Mapping
from typing import IO, Any

from mmjax.errors import UserError
from mmjax.prepare import files
from mmjax.prepare.kinds import Kind
from mmjax.prepare.sources.base import Row, Source, load_file
from mmjax.prepare.sources.folder import kind_of_suffix

# A gzip file above this size, in bytes, must not unpack to more than this many times its own.
_FREE_BYTES, _MAX_RATIO = 2**28, 100
_SUFFIXES = (".tar", ".tar.gz", ".tgz")


class WebDataset(Source):
    """A tar file, plain or gzipped, or a folder of tar files, which are read in the order of their names."""

    def __init__(self, uri: str):
        self.uri = uri

    @staticmethod
    def accepts(uri: str) -> bool:
        return uri.lower().endswith(_SUFFIXES) or files.is_folder(uri) and bool(_tars(uri))

    @property
    def kinds(self) -> Mapping[str, str]:
        return {"cls": "label", "label": "label"}

    def rows(self, work: pathlib.Path) -> Iterator[Row]:
        tars = _tars(self.uri) if files.is_folder(self.uri) else [self.uri]
        for index, uri in enumerate(tars):
            prefix = f"{index:05}/" if len(tars) > 1 else ""
            yield from _examples(uri, prefix, work)

    def load(self, value: Any, kind: Kind) -> Any:
        return load_file(value)


def _tars(folder: str) -> list[str]:
    return [files.join(folder, name) for name, _ in files.walk(folder) if name.lower().endswith(_SUFFIXES)]


def _examples(uri: str, prefix: str, work: pathlib.Path) -> Iterator[Row]:
    """Lists the examples of one tar file; `prefix` keeps keys unique across files."""
    if not files.exists(uri):
        raise UserError("--source", f"no file {uri!r}", "give a tar file or a folder")
    try:
        plain = _uncompressed(uri, work)
        stem, values, seen = None, {}, set()
        with files.open_file(plain) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                _check_member(uri, member)
                path = member.name.removeprefix("./")
                if any(part.startswith(".") and part != "." for part in path.split("/")):
                    continue  # hidden files, such as metadata of a file system
                folder, _, name = path.rpartition("/")
                base, _, extension = name.partition(".")
                if stem is not None and stem != f"{folder}/{base}":
                    yield Row(prefix + stem.lstrip("/"), values)
                    seen.add(stem)
                    values = {}
                stem = f"{folder}/{base}"
                column = kind_of_suffix(name) or extension.lower()
                # A second file of the same kind becomes a separate column, named by its extension: left.png, right.png.
                column = column if column not in values else extension.lower()
                if stem in seen or column in values:
                    problem = f"{uri!r} has {member.name!r} twice, or apart from its example"
                    remedy = "repack it with the files of each example in sequence: tar --sort=name"
                    raise UserError("--source", problem, remedy)
                reference = {"file": plain, "name": member.name, "offset": member.offset_data, "size": member.size}
                values[column] = reference
            _check_end(file, archive)
        if stem is not None:
            yield Row(prefix + stem.lstrip("/"), values)
    except UserError:
        raise
    # On damaged files, tarfile also raises ValueError, OverflowError and RecursionError.
    except Exception as error:
        problem = f"{uri!r} is not a readable tar file: {error}"
        raise UserError("--source", problem, "repack it, or leave it out") from None


def _check_member(uri: str, member: tarfile.TarInfo) -> None:
    """Raises UserError for links, devices, and names that escape the folder."""
    parts = pathlib.PurePosixPath(member.name.replace("\\", "/")).parts
    if ".." in parts or member.name.startswith(("/", "\\")) or parts and parts[0].endswith(":"):
        problem = f"{uri!r} has a member {member.name!r} outside the folder"
        raise UserError("--source", problem, "do not trust this file; repack it with relative names without ..")
    if member.size < 0 or member.offset_data < 0:
        raise tarfile.ReadError(f"the member {member.name!r} has a negative size")
    # The data of a sparse member does not lie at one place of the archive.
    if not member.isfile() or member.sparse is not None:
        problem = f"{uri!r} has a member {member.name!r} that is not a regular file"
        raise UserError("--source", problem, "repack it without links, devices and sparse files")


def _check_end(file: IO[bytes], archive: tarfile.TarFile) -> None:
    """Raises tarfile.ReadError unless only zero blocks follow the last member: tarfile treats damage as the end."""
    last = archive.getnames()[-1:] or [""]
    file.seek(archive.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"cut short after {last[0]!r}")
    while block:
        if block.strip(b"\0"):
            raise tarfile.ReadError(f"the data after {last[0]!r} is damaged or a second archive")
        block = file.read(1 << 20)


def _uncompressed(uri: str, work: pathlib.Path) -> str:
    """Decompresses a tar file, so that members can be read at offsets. Returns the path; `uri` if uncompressed."""
    if uri.lower().endswith(".tar"):
        return uri
    copy = work / "tars" / f"{hashlib.sha256(uri.encode()).hexdigest()[:16]}.tar"
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        partial = copy.with_suffix(".partial")
        with files.open_file(uri) as packed, gzip.open(packed) as source, partial.open("wb") as target:
            while block := source.read(1 << 20):
                target.write(block)
                if target.tell() > max(_FREE_BYTES, _MAX_RATIO * packed.tell()):
                    raise tarfile.ReadError(f"it unpacks to more than {_MAX_RATIO} times its size")
        partial.replace(copy)
    return str(copy)
