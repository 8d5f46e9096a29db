"""Profiles of source columns, to infer the kind of a column from all of its values in bounded memory."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable
from typing import Any

from mmjax.modalities.table import is_missing, is_number
from mmjax.prepare.kinds.labels import as_list
from mmjax.prepare.sources import Row
from mmjax.prepare.sources.folder import kind_of_suffix

MAX_CLASSES = 1000
"""A column with more distinct values is not a label."""

# Minimum fraction of values with a file suffix of one kind, for a column of paths. Other values are reported as
# unreadable.
_PATH_SHARE = 0.9
# Integers are classes if they have few distinct values, many rows per value or a leading zero, or if they are
# consecutive from 0 or 1.
_FEW_INTEGERS = 20
_MANY_ROWS = 10

_INTEGER = re.compile(r"[-+]?\d+(\.0*)?")


class Profile:
    """Infers the kind of a column from values that are added one by one.

    Attributes:
      rows: number of values that are not None.
      reason: why the column has no kind; "" if it has one. Set by `kind`.
    """

    def __init__(self):
        self.rows = 0
        self.reason = ""
        self._texts, self._words = 0, 0
        self._suffixes: collections.Counter = collections.Counter()
        self._distinct: set[str] = set()
        self._numbers, self._integers = True, True
        self._lists, self._elements, self._list_problem = 0, set(), ""
        self._kinds: collections.Counter = collections.Counter()
        self._other = ""

    def add(self, value: Any) -> None:
        """Adds a value of the listing."""
        if value is None:
            return
        self.rows += 1
        if isinstance(value, dict):
            # A reference to a file of the source, or content that a listing cannot hold.
            self._kinds[kind_of_suffix(value.get("name", ""))] += 1
            self._other = self._other or value.get("unlisted", "a file with an unknown suffix")
        elif (items := as_list(value)) is not None:
            self._add_list(items)
        elif isinstance(value, (str, int, float)):
            self._add_text(str(value).strip(), is_missing(value))
        else:
            self._other = self._other or f"a {type(value).__name__}"

    def _add_list(self, items: list[Any]) -> None:
        self._lists += 1
        for item in items:
            if isinstance(item, (str, int)):
                if len(self._elements) <= MAX_CLASSES:
                    self._elements.add(item)
            elif item is not None:
                self._list_problem = f"lists of {type(item).__name__}, which are not class names"

    def _add_text(self, text: str, missing: bool) -> None:
        # Ignore spellings of a missing value such as "none", although a class may have that name.
        if missing:
            return
        self._texts += 1
        self._words += len(text.split())
        self._suffixes[kind_of_suffix(text)] += 1
        if len(self._distinct) <= MAX_CLASSES:
            self._distinct.add(text)
        if self._numbers:
            self._numbers = is_number(text)
        self._integers = self._integers and bool(_INTEGER.fullmatch(text))

    @property
    def paths(self) -> bool:
        """True if at least a fraction `_PATH_SHARE` of the strings are paths with a file suffix of one kind."""
        return bool(self._path_kind())

    def _path_kind(self) -> str | None:
        if not self._texts:
            return None
        kind, count = self._suffixes.most_common(1)[0]
        return kind if count >= _PATH_SHARE * self._texts else None

    def kind(self) -> str | None:
        """Infers the kind of the column. Returns None, and sets `reason`, if no kind accepts the values."""
        kind, self.reason = self._kind()
        return kind

    def _kind(self) -> tuple[str | None, str]:
        if not self.rows:
            return None, "all values are missing"
        if self._kinds:
            kind = self._kinds.most_common(1)[0][0]
            return kind, "" if kind else f"holds {self._other}"
        if self._other:
            return None, f"holds {self._other}"
        if self._lists:
            return self._kind_of_lists()
        if not self._texts:
            return None, "all values are missing"
        if path_kind := self._path_kind():
            return path_kind, ""
        few = len(self._distinct) <= min(MAX_CLASSES, max(2, self._texts // 2))
        if self._numbers:
            return "label" if few and self._integers and self._are_classes() else "number", ""
        # Sentences from templates repeat like labels, but are longer.
        return "label" if few and self._words < 3 * self._texts else "text", ""

    def _are_classes(self) -> bool:
        """Returns True if integers look like classes rather than amounts."""
        count, values = len(self._distinct), {float(text) for text in self._distinct}
        gapless = min(values) in (0, 1) and max(values) - min(values) + 1 == len(values)
        coded = any(re.fullmatch(r"[-+]?0\d+", text) for text in self._distinct)
        return count <= _FEW_INTEGERS or gapless or coded or self._texts >= _MANY_ROWS * count

    def _kind_of_lists(self) -> tuple[str | None, str]:
        if self._texts:
            return None, "holds both lists and other values"
        if self._list_problem:
            return None, f"holds {self._list_problem}"
        if not self._elements:
            return None, "all lists are empty"
        if len(self._elements) > MAX_CLASSES:
            return None, f"holds lists of more than {MAX_CLASSES:,} different values, too many for classes"
        return "labels", ""


def guess_kind(values: Iterable[Any]) -> str | None:
    """Infers the kind of a column from its values. Returns None if all are missing or no kind accepts them."""
    profile = Profile()
    for value in values:
        profile.add(value)
    return profile.kind()


def profile_rows(rows: Iterable[Row], keys: Iterable[str]) -> tuple[dict[str, Profile], set[str]]:
    """Profiles all columns of a listing.

    Args:
      rows: rows of the source.
      keys: columns that may be the key.

    Returns:
      ({column: profile}, subset of `keys` with unique values).
    """
    profiles: dict[str, Profile] = {}
    seen: dict[str, set[str]] = {name: set() for name in keys}
    count = 0
    for count, row in enumerate(rows, 1):  # noqa: B007
        for name, value in row.values.items():
            if name not in profiles:
                profiles[name] = Profile()
            profiles[name].add(value)
            if name in seen and value is not None:
                seen[name].add(str(value))
    return profiles, {name for name, values in seen.items() if count and len(values) == count}
