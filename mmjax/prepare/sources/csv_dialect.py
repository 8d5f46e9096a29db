"""CSV dialect detection: delimiter, and decimal commas as written by localized spreadsheets."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import re
from collections.abc import Iterator
from typing import TextIO

from mmjax.modalities.table import is_missing
from mmjax.prepare import files

_DELIMITERS = ",;\t|"
MAX_LINE = 2**24
"""Maximum number of characters of a line of a manifest."""

# Maximum number of lines to examine.
_MAX_LINES = 1000
# Fraction of lines that must have the header's field count; a few lines may be malformed.
_MIN_CONSISTENT = 0.9
_DECIMAL = re.compile(r"[-+]?(\d+|\d{1,3}(\.\d{3})+),\d+")
_INTEGER = re.compile(r"[-+]?\d+")
# Ambiguous: "1,234" may be 1234 or 1.234.
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}(,\d{3})+")


def read_lines(text: TextIO) -> Iterator[str]:
    """Yields the lines of a text file. Raises ValueError if one is longer than `MAX_LINE`."""
    while line := text.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise ValueError(f"a line has more than {MAX_LINE:,} characters")
        yield line


@dataclasses.dataclass(frozen=True)
class Dialect:
    """Dialect of a CSV file.

    Attributes:
      delimiter: field delimiter.
      skipped: number of lines before the header.
      decimal_commas: names of the columns whose numbers use decimal commas.
    """

    delimiter: str
    skipped: int = 0
    decimal_commas: frozenset[str] = frozenset()

    def normalize(self, column: str, value: str) -> str:
        """Replaces decimal commas by decimal points, and removes thousands separators, in `decimal_commas` columns."""
        if column in self.decimal_commas and _DECIMAL.fullmatch(value.strip()):
            return value.replace(".", "").replace(",", ".")
        return value


def detect_dialect(uri: str) -> Dialect:
    """Detects the dialect from the first lines of a file.

    Raises:
      OSError: if the file cannot be opened.
      ValueError: if it is not UTF-8.
    """
    with files.open_file(uri) as raw:
        lines = []
        for line in itertools.islice(read_lines(io.TextIOWrapper(raw, "utf-8-sig", newline="")), _MAX_LINES):
            lines.append(line)
            if sum(map(len, lines)) > MAX_LINE:
                break
    # Excel declares the delimiter in a first line, such as "sep=;".
    if lines and (declared := re.fullmatch(r"sep=(.)\s*", lines[0])):
        return Dialect(declared[1], 1, _decimal_commas([row for row in _rows(lines[1:], declared[1]) if row]))
    default = "\t" if uri.lower().endswith(".tsv") else ","
    for delimiter in (default, *_DELIMITERS.replace(default, "")):
        rows = [row for row in _rows(lines, delimiter) if row]
        consistent = [row for row in rows if len(row) == len(rows[0])]
        if rows and len(rows[0]) > 1 and len(consistent) >= _MIN_CONSISTENT * len(rows):
            return Dialect(delimiter, 0, _decimal_commas(consistent) if delimiter != "," else frozenset())
    # A single column, or no consistent delimiter; parsing with the default then reports the faulty line.
    return Dialect(default)


def _rows(lines: list[str], delimiter: str) -> list[list[str]]:
    rows = list(csv.reader(lines, delimiter=delimiter))
    # The last row may be incomplete: a quoted value with line breaks can continue beyond the examined lines.
    return rows[:-1] if len(lines) == _MAX_LINES else rows


def _decimal_commas(rows: list[list[str]]) -> frozenset[str]:
    """Names of the columns whose numbers use decimal commas unambiguously; `rows` include the header."""
    columns = set()
    for name, *values in zip(*rows, strict=False):
        cells = [value.strip() for value in values if not is_missing(value)]
        commas = [cell for cell in cells if _DECIMAL.fullmatch(cell)]
        numbers = all(_DECIMAL.fullmatch(cell) or _INTEGER.fullmatch(cell) for cell in cells)
        if numbers and not all(_THOUSANDS.fullmatch(cell) for cell in commas):
            columns.add(name.strip())
    return frozenset(columns)
