"""What preparation asks of a source: its rows, and the value of a column of one of them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from mmjax.prepare import files
from mmjax.prepare.kinds import File, Kind, Unreadable


@dataclasses.dataclass(frozen=True)
class Row:
    """One example as the source lists it.

    Attributes:
      key: its own name, the same in each listing.
      values: {column: what JSON can hold}, from which `Source.load` makes the value itself. None where it is missing.
    """

    key: str
    values: Mapping[str, Any]


class Source(Protocol):
    """Raw data of the user's. It can be pickled: worker processes load values too."""

    def __init__(self, uri: str): ...

    @staticmethod
    def accepts(uri: str) -> bool:
        """Whether a place holds such data; the first source of the table that accepts it is taken."""

    @property
    def kinds(self) -> Mapping[str, str]:
        """{column: kind}, where the source knows better than its values tell."""

    def rows(self, work: pathlib.Path) -> Iterator[Row]:
        """Lists the examples, always in the same order. `work` is a folder for what must be unpacked first.

        Raises:
          UserError: if the place cannot be listed.
        """

    def load(self, value: Any, kind: Kind) -> Any:
        """The `File` or value that `kind` decodes. Raises OSError or `Unreadable`."""


def load_folder(uri: str) -> tuple[File, ...]:
    """Loads all files of a folder, hidden ones left out."""
    return tuple(File(name, files.read(files.join(uri, name))) for name, _ in files.walk(uri))


def load_file(reference: Any) -> Any:
    """Loads {"file": place}, with "offset" and "size" where it is a part of a file; anything else is the value."""
    if not isinstance(reference, dict) or "file" not in reference:
        return reference
    uri, size = str(reference["file"]), reference.get("size")
    if "\0" in uri:
        raise Unreadable("no file has such a name")
    data = files.read(uri, reference.get("offset", 0), size)
    if size is not None and len(data) < size:
        raise Unreadable(f"cut short: {len(data):,} of {size:,} bytes")
    return File(reference.get("name", uri), data)
