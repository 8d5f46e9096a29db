"""Labels: the name of a class, one of few."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from mmjax.prepare.kinds.base import File, Kind, Unreadable

# How programs write that a cell is missing. "none" and "NA" may be classes.
_MISSING = ("nan", "NaN", "N/A", "n/a", "?")


class LabelKind(Kind):
    """A class; stored by its number in the order of the classes' names, numbers in the order of their size."""

    target = True
    keeps_words = True
    suffixes = (".cls",)

    def decode(self, value: Any) -> str | None:
        if isinstance(value, (File, bytes)):
            data = value.data if isinstance(value, File) else value
            try:
                value = data.decode()
            except UnicodeDecodeError:
                raise Unreadable("not UTF-8") from None
        if isinstance(value, float) and value.is_integer():
            # A column of integers with gaps is one of floating point for Parquet and pandas.
            value = int(value)
        name = str(value).strip()
        if not name:
            raise Unreadable("an empty label")
        return None if name in _MISSING else name

    def measure(self, raw: str) -> dict[str, float | int | str]:
        return {"class": raw, "bytes": 8}

    def summarise(self, numbers: Mapping[str, Any], words: Mapping[str, list[str | None]]) -> dict[str, Any]:
        return {"classes": ordered({name for name in words.get("class", ()) if name is not None})}

    def feature(self, tfds: Any, summary: Mapping[str, Any]) -> Any:
        return tfds.features.ClassLabel(names=list(summary["classes"]))

    def stored(self, raw: str, summary: Mapping[str, Any]) -> int:
        return summary["classes"].index(raw)

    def placeholder(self, summary: Mapping[str, Any]) -> int:
        return -1

    def show(self, raw: str) -> str:
        return f"<b>{html.escape(raw)}</b>"


def ordered(classes: set[str]) -> list[str]:
    """The names of classes in alphabetical order, but by size where all are numbers."""
    try:
        return sorted(classes, key=lambda name: (float(name), name))
    except ValueError:
        return sorted(classes)
