"""Random pictures, sentences and sounds of any size, made in memory: for steps on a machine that has no data.

A recipe that names it can be planned (`mmjax plan`) and measured (`benchmarks/step.py`) anywhere, and trained to see
that everything works. There is nothing in it to learn: put a real dataset in its place.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Annotated

import numpy as np

from mmjax.config import AtLeast, Count, NonNegative
from mmjax.data.dataset import Record, check_split
from mmjax.files import cache_folder
from mmjax.tokens import TargetSpec

SPLITS = ("train", "validation", "test")
RATE = 16_000


class Synthetic:
    """Inputs `image`, `text` and `audio`, target `label`: all random, a few examples again and again."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Sizes of the raw data, before its modalities make arrays of it.

        Attributes:
          image: (height, width, channels) in pixels.
          letters: of a sentence.
          recording: length of a sound in seconds.
          classes: of the label.
          examples: different ones in each split.
        """

        image: tuple[Count, ...] = (32, 32, 3)
        letters: NonNegative = 32
        recording: Annotated[float, AtLeast(0.01)] = 1.0
        classes: Annotated[int, AtLeast(2)] = 10
        examples: Count = 256

        def __post_init__(self):
            if len(self.image) != 3 or self.image[2] > 4:
                raise ValueError(f"image = {self.image} is no picture; give (height, width, 1 to 4 channels)")

    def __init__(self, config: Config):
        self.config = config

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS

    @property
    def inputs(self) -> Mapping[str, str]:
        return {"image": "image", "text": "text", "audio": "audio"}

    @property
    def targets(self) -> Mapping[str, TargetSpec]:
        return {"label": TargetSpec((), "int32", tuple(map(str, range(self.config.classes))))}

    def prepare(self) -> pathlib.Path:
        """Nothing is kept in files."""
        return cache_folder()

    def source(self, split: str) -> SyntheticSource:
        check_split(split, self.splits)
        return SyntheticSource(self.config, SPLITS.index(split))

    def ceilings(self, split: str) -> dict[str, dict[str, float]]:
        """There is nothing to learn."""
        return {}


@dataclasses.dataclass(frozen=True)
class SyntheticSource:
    """Each record is a function of its split and its number."""

    config: Synthetic.Config
    split: int

    def __len__(self) -> int:
        return self.config.examples

    def __getitem__(self, index: int) -> Record:
        draws = np.random.Generator(np.random.Philox(key=[index, self.split + 1]))
        image = draws.integers(0, 256, self.config.image, np.uint8)
        text = draws.integers(ord("a"), ord("z") + 1, self.config.letters, np.uint8).tobytes().decode()
        samples = draws.integers(-(2**12), 2**12, max(1, round(self.config.recording * RATE)), np.int16)
        return Record({"image": image, "text": text, "audio": (samples, RATE)}, {"label": index % self.config.classes})
