"""Kinds of columns: what `mmjax prepare` can decode, check, store and show. A new kind is one file and one line here.

Of kinds that share a suffix, such as .npy, the first takes files whose kind nobody names.

Inputs whose kind is also a key of `mmjax.modalities.MODALITIES` can be trained on; `restore` gives what it processes.
"""

from __future__ import annotations

from mmjax.data.prepare.kinds.audio import AudioKind
from mmjax.data.prepare.kinds.base import File, Kind, Unreadable
from mmjax.data.prepare.kinds.image import ImageKind
from mmjax.data.prepare.kinds.label import LabelKind
from mmjax.data.prepare.kinds.number import NumberKind
from mmjax.data.prepare.kinds.points import PointsKind
from mmjax.data.prepare.kinds.series import SeriesKind
from mmjax.data.prepare.kinds.table import TableKind
from mmjax.data.prepare.kinds.text import TextKind
from mmjax.data.prepare.kinds.video import VideoKind

KINDS: dict[str, type[Kind]] = {
    "image": ImageKind,
    "audio": AudioKind,
    "text": TextKind,
    "table": TableKind,
    "series": SeriesKind,
    "points": PointsKind,
    "video": VideoKind,
    "label": LabelKind,
    "number": NumberKind,
}

__all__ = ["KINDS", "File", "Kind", "Unreadable"]
