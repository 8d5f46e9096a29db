"""Tar files in the manner of WebDataset: members whose names are equal up to the first dot are one example.

Nothing is ever unpacked under a name that an archive gives. A member whose name would leave a folder, or that is a link
or a device, is refused nonetheless, as nobody packs one by accident.
"""

from __future__ import annotations

import gzip
import hashlib
import pathlib
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from typing import IO, Any

from mmjax.errors import UserError
from mmjax.prepare import files
from mmjax.prepare.kinds import Kind
from mmjax.prepare.sources.base import Row, load_file
from mmjax.prepare.sources.folder import kind_of_suffix

_SUFFIXES = (".tar", ".tar.gz", ".tgz")


class WebDataset:
    """A tar file, plain or gzipped, or a folder of them, which is read in the order of their names."""

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
        for number, uri in enumerate(tars):
            prefix = f"{number:05}/" if len(tars) > 1 else ""
            yield from _examples(uri, prefix, work)

    def load(self, value: Any, kind: Kind) -> Any:
        return load_file(value)


def _tars(folder: str) -> list[str]:
    return [files.join(folder, name) for name, _ in files.walk(folder) if name.lower().endswith(_SUFFIXES)]


def _examples(uri: str, prefix: str, work: pathlib.Path) -> Iterator[Row]:
    if not files.exists(uri):
        raise UserError("--source", f"there is no file {uri!r}", "give a tar file or a folder")
    try:
        plain = _plain(uri, work)
        stem, values, seen = None, {}, set()
        with files.open_file(plain) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                _check(uri, member)
                path = member.name.removeprefix("./")
                if any(part.startswith(".") and part != "." for part in path.split("/")):
                    continue  # what a file system keeps for itself, as of folders
                folder, _, name = path.rpartition("/")
                begins, _, ends = name.partition(".")
                if stem is not None and stem != f"{folder}/{begins}":
                    yield Row(prefix + stem.lstrip("/"), values)
                    seen.add(stem)
                    values = {}
                stem = f"{folder}/{begins}"
                column = kind_of_suffix(name) or ends.lower()
                # Two files of one kind keep their own names: left.png, right.png.
                column = column if column not in values else ends.lower()
                if stem in seen or column in values:
                    problem = f"{uri!r} has {member.name!r} apart from its example, or twice"
                    remedy = "pack it anew with the files of each example one after the other: tar --sort=name"
                    raise UserError("--source", problem, remedy)
                reference = {"file": plain, "name": member.name, "offset": member.offset_data, "size": member.size}
                values[column] = reference
            _check_end(file, archive)
        if stem is not None:
            yield Row(prefix + stem.lstrip("/"), values)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        problem = f"{uri!r} cannot be read as a tar file: {error}"
        raise UserError("--source", problem, "pack it anew, or leave it out") from None


def _check(uri: str, member: tarfile.TarInfo) -> None:
    parts = pathlib.PurePosixPath(member.name.replace("\\", "/")).parts
    if ".." in parts or member.name.startswith(("/", "\\")) or parts and parts[0].endswith(":"):
        problem = f"{uri!r} has a member {member.name!r}, whose name leaves the folder"
        raise UserError("--source", problem, "do not trust this file; pack it anew with names below one folder")
    if not member.isfile():
        problem = f"{uri!r} has a member {member.name!r} that is no file"
        raise UserError("--source", problem, "pack it anew without links and devices")


def _check_end(file: IO[bytes], archive: tarfile.TarFile) -> None:
    """An archive ends with a block of zeros and nothing behind it; Python's reader takes any damage for the end."""
    last = archive.getnames()[-1:] or [""]
    file.seek(archive.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"cut short after {last[0]!r}")
    while block:
        if block.strip(b"\0"):
            raise tarfile.ReadError(f"what comes after {last[0]!r} is damaged, or another archive")
        block = file.read(1 << 20)


def _plain(uri: str, work: pathlib.Path) -> str:
    """The place itself, or that of its uncompressed copy, in which each member can be found again."""
    if uri.lower().endswith(".tar"):
        return uri
    copy = work / "tars" / f"{hashlib.sha256(uri.encode()).hexdigest()[:16]}.tar"
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        partial = copy.with_suffix(".partial")
        with files.open_file(uri) as packed, gzip.open(packed) as source, partial.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        partial.replace(copy)
    return str(copy)
