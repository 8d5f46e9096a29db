"""Interface of a raw data source: listing rows and loading values."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from mmjax.prepare import files
from mmjax.prepare.kinds import File, Kind, Unreadable


@dataclasses.dataclass(frozen=True)
class Row:
    """One example in the listing of a source.

    Attributes:
      key: unique name, the same in every listing.
      values: {column: JSON value}, which `Source.load` resolves. None if missing.
    """

    key: str
    values: Mapping[str, Any]


class Source(Protocol):
    """Raw data source. Must be picklable: worker processes call `load`."""

    allow_outside: bool = False
    """True if a manifest may refer to files outside its folder."""

    def __init__(self, uri: str): ...

    @staticmethod
    def accepts(uri: str) -> bool:
        """Returns True if the source can read `uri`; the first such source in `SOURCES` is used."""

    @property
    def kinds(self) -> Mapping[str, str]:
        """{column: kind} of columns whose kind the source defines; the others are inferred from values."""
        return {}

    @property
    def left_out(self) -> Mapping[str, str]:
        """{content that is not a column: why it is not used}. Complete only after `rows` has been iterated."""
        return {}

    def rows(self, work: pathlib.Path) -> Iterator[Row]:
        """Lists the examples in a deterministic order. `work` is a folder for unpacked files.

        Raises:
          UserError: if the source cannot be listed.
        """

    def load(self, value: Any, kind: Kind) -> Any:
        """Resolves a value of `Row.values` to the argument of `kind.decode`: a `File`, a tuple of files, or a value.

        Raises:
          OSError: if a file cannot be opened.
          Unreadable: if it is truncated or its name is invalid.
        """


def load_folder(uri: str) -> tuple[File, ...]:
    """Loads all files of a folder except hidden ones."""
    return tuple(File(name, files.read(files.join(uri, name))) for name, _ in files.walk(uri))


def load_file(reference: Any) -> Any:
    """Loads {"file": URI}, optionally with "offset" and "size" in bytes; returns any other value unchanged.

    Raises:
      OSError: if the file cannot be opened.
      Unreadable: if it is truncated or its name is invalid.
    """
    if not isinstance(reference, dict) or "file" not in reference:
        return reference
    uri, size = str(reference["file"]), reference.get("size")
    if "\0" in uri:
        raise Unreadable("the file name contains a null byte")
    data = files.read(uri, reference.get("offset", 0), size)
    if size is not None and len(data) < size:
        raise Unreadable(f"cut short: {len(data):,} of {size:,} bytes")
    return File(reference.get("name", uri), data)
