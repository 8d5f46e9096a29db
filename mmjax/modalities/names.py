"""Canonical spelling of names: classes, categories, groups and splits."""

from __future__ import annotations

import collections
import decimal
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

# A number without leading zeros. "007" is a code, and "1e3" may be one.
_NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)")


def canonical_name(value: Any) -> str:
    """Returns the canonical spelling of a name: Unicode NFC, stripped of whitespace, with numbers normalised.

    `1`, `1.0` and `+1` give "1"; `0.50` gives "0.5"; codes such as `007` and `1e3` are unchanged. Surrogates, which
    UTF-8 cannot encode, are escaped.
    """
    if isinstance(value, float) and value == value and abs(value) != float("inf"):
        return _plain(decimal.Decimal(repr(float(value))))
    text = unicodedata.normalize("NFC", printable(str(value))).strip()
    # Python's \d and Decimal accept the digits of all scripts, but not "²".
    return _plain(decimal.Decimal(text)) if _NUMBER.fullmatch(text) else text


def _plain(number: decimal.Decimal) -> str:
    """Formats a number with all its digits, but without an exponent or trailing zeros."""
    text = f"{number:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text


def printable(text: str) -> str:
    """Replaces surrogates, which undecodable file names and JSON escapes produce, with escapes such as \\udcff."""
    return text.encode("utf-8", "backslashreplace").decode()


def similar_names(names: Iterable[str | None]) -> list[Mapping[str, int]]:
    """Finds names that differ only in case or whitespace.

    Args:
      names: name of each row, None where missing.

    Returns:
      {name: number of rows} for each set of two or more such names, in sorted order.
    """
    spellings: dict[str, dict[str, int]] = collections.defaultdict(dict)
    for name, count in sorted(collections.Counter(name for name in names if name is not None).items()):
        spellings["".join(name.split()).casefold()][name] = count
    return [counts for _, counts in sorted(spellings.items()) if len(counts) > 1]
