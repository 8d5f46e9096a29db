"""Modalities: convert raw data to NumPy arrays of a static shape, on the host.

A config selects a modality by its name in `MODALITIES`. Each one is a class with a nested frozen dataclass `Config` and
the members of `Modality`. To add one, write one file and add one line to the table.
"""

from __future__ import annotations

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
    """Interface of a modality, used by the data pipeline, the model and the command line.

    Optional methods:
      files() -> list[pathlib.Path]: files that `process` depends on, such as a tokenizer. Runs keep copies of them.
      warnings(raw) -> list[str]: properties of raw data that make a prediction unreliable.
    """

    def __init__(self, config: Any): ...

    @property
    def spec(self) -> InputSpec:
        """Shape and dtype of one example's values, and the number of leading axes that its mask covers."""

    def process(self, raw: Any) -> tuple[np.ndarray, np.ndarray]:
        """Converts raw data to (values `spec.shape`, mask `spec.shape[:spec.mask_rank]`).

        Raises:
          ValueError: if `raw` is invalid.
        """

    def read(self, argument: str, where: str) -> Any:
        """Reads raw data given by the command-line flag `--{where}=argument`, where `argument` is a path or a sentence.

        Raises:
          UserError: if the argument or its file is invalid.
        """


class Packable(Modality, Protocol):
    """Interface of a modality that supports packing: several examples share a row.

    Attributes:
      measures: names of the record statistics that `lengths` needs, as in the index written by `mmjax prepare`.
    """

    measures: ClassVar[tuple[str, ...]]

    def packed_spec(self, budget: int) -> InputSpec:
        """Spec of a packed row of `budget` elements: [budget, ...], with positions."""

    def lengths(self, measured: Mapping[str, np.ndarray], budget: int) -> np.ndarray:
        """Computes the element count of each record, int64 [records] in [1, budget], from {measure: [records]}."""

    def process_packed(self, raw: Any, max_elements: int) -> tuple[np.ndarray, np.ndarray]:
        """Converts raw data to (values [n, ...], positions [n, axes] float32), with n <= max_elements.

        Raises:
          ValueError: if `raw` is invalid.
        """


MODALITIES: dict[str, type[Modality]] = {
    "image": Image,
    "text": Text,
    "audio": Audio,
    "table": Table,
    "series": Series,
    "points": Points,
    "video": Video,
}
