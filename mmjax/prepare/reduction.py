"""Data reduction of single inputs, as `mmjax prepare` applied it to a whole column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmjax.config import build
from mmjax.errors import UserError
from mmjax.modalities.raw_files import read_bytes
from mmjax.prepare.kinds import KINDS, File, Unreadable


class Reduction:
    """Decodes a file and reduces it like a column of a prepared dataset, so that `predict` sees what training saw.

    Args:
      kind: key of `KINDS`.
      options: options of the kind's `Reduce`.
      summary: column statistics that storage needs; see `Kind.summarise`.
    """

    def __init__(self, kind: str, options: Mapping[str, Any], summary: Mapping[str, Any]):
        cls = KINDS[kind]
        self._kind, self._summary = cls(None, build(cls.Reduce, options, f"reduce.{kind}")), summary

    def read(self, argument: str, where: str) -> Any:
        """Reads and decodes the file at the path `argument`, without reducing it.

        Raises:
          UserError: if it cannot be read; `where` is the name of the flag.
        """
        remedy = f"give the path of a file with the suffix {', '.join(self._kind.suffixes)}"
        try:
            return self._kind.decode(File(argument, read_bytes(argument, where, remedy)))
        except Unreadable as error:
            raise UserError(where, f"{argument!r} cannot be read: {error}", remedy) from None

    def faults(self, raw: Any) -> dict[str, str]:
        """Faults for which `mmjax prepare` drops a value, {fault: reason}, from decoded data."""
        reduced = self._kind.reduced(raw)
        measured = self._kind.measure(reduced) | ({} if reduced is raw else self._kind.measure_whole(raw))
        return self._kind.faults(measured)

    def apply(self, raw: Any) -> Any:
        """Reduces decoded data and returns it as read from a stored record: raw data of the modality."""
        return self._kind.restore(self._kind.stored(self._kind.reduced(raw), self._summary))
