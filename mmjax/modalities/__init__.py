"""What raw data of a kind becomes: arrays of one static shape, made with NumPy on the host.

A modality is chosen by its name in `MODALITIES`. Each is a class with a nested frozen dataclass `Config` and the
members of `Modality`. A new kind is one new file and one line in the table.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import numpy as np

from mmjax.modalities.audio import Audio
from mmjax.modalities.image import Image
from mmjax.modalities.points import Points
from mmjax.modalities.series import Series
from mmjax.modalities.table import Table
from mmjax.modalities.text import Text
from mmjax.modalities.video import Video
from mmjax.tokens import InputSpec


class Modality(Protocol):
    """What the pipeline, the model and the command line ask of a modality."""

    def __init__(self, config: Any): ...

    @property
    def spec(self) -> InputSpec:
        """Shape and dtype of the values of one example, and how many leading axes the mask covers."""

    def process(self, raw: Any) -> tuple[np.ndarray, np.ndarray]:
        """Makes (values `spec.shape`, mask `spec.shape[:spec.mask_rank]`) of raw data, or raises ValueError."""

    def read(self, argument: str, where: str) -> Any:
        """Reads raw data as `--{where}=argument` gives it: a file's path, or a sentence. Raises UserError."""

    def files(self) -> list[pathlib.Path]:
        """Files that `process` depends on, for example a tokenizer's; a checkpoint keeps copies of them."""


class Packable(Modality, Protocol):
    """What packing asks in addition of a modality whose examples can share rows.

    Attributes:
      measures: what `lengths` has to know of a record, by the names that `mmjax prepare` gives it in its index.
    """

    measures: ClassVar[tuple[str, ...]]

    def packed(self, budget: int) -> InputSpec:
        """The form of a row of so many elements: [budget, ...], with positions."""

    def lengths(self, measured: Mapping[str, np.ndarray], budget: int) -> np.ndarray:
        """Int [records], how many elements each takes, at least 1 and at most `budget`, from {measure: [records]}."""

    def elements(self, raw: Any, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Makes (values [n, ...], positions [n, axes] float32) of raw data, with n <= most, or raises ValueError."""


MODALITIES: dict[str, type[Modality]] = {
    "image": Image,
    "text": Text,
    "audio": Audio,
    "table": Table,
    "series": Series,
    "points": Points,
    "video": Video,
}
