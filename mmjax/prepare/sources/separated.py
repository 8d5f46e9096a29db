"""What stands between the values of a CSV file, and whether its numbers have decimal commas: spreadsheets differ."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import re

from mmjax.modalities.table import is_missing
from mmjax.prepare import files

_DELIMITERS = ",;\t|"
_LOOKED_AT = 1000
# A line that is torn must not hide what stands between the values of all others.
_MOST = 0.9
_DECIMAL = re.compile(r"[-+]?(\d+|\d{1,3}(\.\d{3})+),\d+")
_WHOLE = re.compile(r"[-+]?\d+")
# "1,234" may be a thousand or one and a bit.
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}(,\d{3})+")


@dataclasses.dataclass(frozen=True)
class Form:
    """How a file is written.

    Attributes:
      delimiter: between two values.
      skipped: lines before that with the names of the columns.
      decimal_commas: columns whose numbers have a comma where others have a point.
    """

    delimiter: str
    skipped: int = 0
    decimal_commas: frozenset[str] = frozenset()

    def read(self, column: str, value: str) -> str:
        """A value as others would write it."""
        if column in self.decimal_commas and _DECIMAL.fullmatch(value.strip()):
            return value.replace(".", "").replace(",", ".")
        return value


def find_form(uri: str) -> Form:
    """Looks at the first lines of a file. Raises OSError, and ValueError where they are no text."""
    with files.open_file(uri) as raw:
        lines = list(itertools.islice(io.TextIOWrapper(raw, "utf-8-sig", newline=""), _LOOKED_AT))
    # Excel's own way to say it.
    if lines and (told := re.fullmatch(r"sep=(.)\s*", lines[0])):
        return Form(told[1], 1, _decimal_commas([row for row in _rows(lines[1:], told[1]) if row]))
    usual = "\t" if uri.lower().endswith(".tsv") else ","
    for delimiter in (usual, *_DELIMITERS.replace(usual, "")):
        rows = [row for row in _rows(lines, delimiter) if row]
        fitting = [row for row in rows if len(row) == len(rows[0])]
        if rows and len(rows[0]) > 1 and len(fitting) >= _MOST * len(rows):
            return Form(delimiter, 0, _decimal_commas(fitting) if delimiter != "," else frozenset())
    # One column, or nothing that fits; the usual mark then shows what is wrong.
    return Form(usual)


def _rows(lines: list[str], delimiter: str) -> list[list[str]]:
    rows = list(csv.reader(lines, delimiter=delimiter))
    # A value with line breaks may go on after the last line that was looked at.
    return rows[:-1] if len(lines) == _LOOKED_AT else rows


def _decimal_commas(rows: list[list[str]]) -> frozenset[str]:
    found = set()
    for name, *values in zip(*rows, strict=False):
        cells = [value.strip() for value in values if not is_missing(value)]
        commas = [cell for cell in cells if _DECIMAL.fullmatch(cell)]
        numbers = all(_DECIMAL.fullmatch(cell) or _WHOLE.fullmatch(cell) for cell in cells)
        if numbers and not all(_THOUSANDS.fullmatch(cell) for cell in commas):
            found.add(name.strip())
    return frozenset(found)
