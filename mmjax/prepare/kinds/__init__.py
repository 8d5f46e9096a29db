"""Column kinds that `mmjax prepare` can decode, check, store and display. A new kind is one file and one line here.

If several kinds share a suffix, such as .npy, files without an explicit kind get the first one.

Input kinds that are also keys of `mmjax.modalities.MODALITIES` can be trained on; `restore` returns that modality's raw
data.
"""

from __future__ import annotations

from mmjax.prepare.kinds.audio import AudioKind
from mmjax.prepare.kinds.base import File, Kind, Unreadable
from mmjax.prepare.kinds.image import ImageKind
from mmjax.prepare.kinds.label import LabelKind
from mmjax.prepare.kinds.number import NumberKind
from mmjax.prepare.kinds.points import PointsKind
from mmjax.prepare.kinds.series import SeriesKind
from mmjax.prepare.kinds.table import TableKind
from mmjax.prepare.kinds.text import TextKind
from mmjax.prepare.kinds.video import VideoKind

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
