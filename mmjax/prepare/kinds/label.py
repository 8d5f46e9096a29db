"""Class labels."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from mmjax.modalities.names import canonical_name
from mmjax.prepare.kinds.base import File, Kind, Numbers, Strings, Unreadable

MISSING = ("nan", "NaN", "N/A", "n/a", "?")
"""Spellings of a missing cell. "none" and "NA" are not among them: they may be classes."""


class LabelKind(Kind):
    """A class label, stored as an index into the sorted class names; numeric names sort by value.

    Names are normalized by `canonical_name`: `1` and `1.0` are the same class.
    """

    target = True
    has_classes = True
    keeps_strings = True
    suffixes = (".cls",)

    def decode(self, value: Any) -> str | None:
        if isinstance(value, (File, bytes)):
            data = value.data if isinstance(value, File) else value
            try:
                value = data.decode()
            except UnicodeDecodeError:
                raise Unreadable("not UTF-8") from None
        name = canonical_name(value)
        if not name:
            raise Unreadable("the label is empty")
        return None if name in MISSING else name

    def measure(self, raw: str) -> dict[str, float | int | str]:
        return {"class": raw, "bytes": 8}

    def class_names(self, category: str) -> tuple[str, ...]:
        return (category,)

    def summarise(self, numbers: Numbers, strings: Strings) -> dict[str, Any]:
        return {"classes": sort_classes({name for name in strings.get("class", ()) if name is not None})}

    def tfds_feature(self, tfds: Any, summary: Mapping[str, Any]) -> Any:
        return tfds.features.ClassLabel(names=list(summary["classes"]))

    def stored(self, raw: str, summary: Mapping[str, Any]) -> int:
        return summary["classes"].index(raw)

    def placeholder(self, summary: Mapping[str, Any]) -> int:
        return -1

    def show(self, raw: str) -> str:
        return f"<b>{html.escape(raw)}</b>"


def sort_classes(classes: set[str]) -> list[str]:
    """Sorts class names alphabetically, or by value if all are numbers."""
    try:
        return sorted(classes, key=lambda name: (float(name), name))
    except ValueError:
        return sorted(classes)
