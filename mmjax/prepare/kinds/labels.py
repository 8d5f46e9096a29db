"""Multi-label targets: several class names per example."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.modalities.names import canonical_name
from mmjax.prepare.kinds.base import File, Kind, Numbers, Strings, Unreadable
from mmjax.prepare.kinds.label import MISSING, sort_classes


class LabelsKind(Kind):
    """Class names of an example, stored as a multi-hot uint8 [classes] over the sorted names.

    An empty list means that no class applies; it is not a missing value.
    """

    target = True
    keeps_strings = True
    has_classes = True

    def decode(self, value: Any) -> tuple[str, ...] | None:
        if isinstance(value, str) and (not value.strip() or value.strip() in MISSING):
            return None
        items = as_list(value)
        if items is None or isinstance(value, File):
            remedy = "give the separator, --columns=NAME=COLUMN:labels;"
            raise Unreadable(f"{str(value)[:60]!r} is not a list; write JSON, or {remedy}")
        for item in items:
            if not isinstance(item, (str, int, float)) or isinstance(item, str) and not item.strip():
                raise Unreadable(f"{item!r} is not a class name")
        return tuple(sorted({canonical_name(item) for item in items}))

    def measure(self, raw: Sequence[str]) -> dict[str, float | int | str]:
        return {"labels": len(raw), "bytes": 8, "class": json.dumps(raw, ensure_ascii=False)}

    def class_names(self, category: str) -> tuple[str, ...]:
        return tuple(json.loads(category))

    def summarise(self, numbers: Numbers, strings: Strings) -> dict[str, Any]:
        lists = {category for category in strings.get("class", ()) if category is not None}
        return {"classes": sort_classes({name for category in lists for name in self.class_names(category)})}

    def tfds_feature(self, tfds: Any, summary: Mapping[str, Any]) -> Any:
        return tfds.features.Tensor(shape=(len(summary["classes"]),), dtype=np.uint8, encoding="bytes")

    def stored(self, raw: Sequence[str], summary: Mapping[str, Any]) -> np.ndarray:
        return np.asarray([name in raw for name in summary["classes"]], np.uint8)

    def placeholder(self, summary: Mapping[str, Any]) -> np.ndarray:
        return np.zeros(len(summary["classes"]), np.uint8)

    def show(self, raw: Sequence[str]) -> str:
        return "<b>" + html.escape(", ".join(raw) or "–") + "</b>"


def as_list(value: Any) -> list[Any] | None:
    """Converts a list, a tuple or a JSON list to a list; None for any other value."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, str) and value.lstrip().startswith("[") and value.rstrip().endswith("]"):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return None
        return parsed if isinstance(parsed, list) else None
    return None
