"""Synthetic dataset: random images, text and audio of any size, generated in memory, for machines without data.

A recipe with synthetic data can be planned (`mmjax plan`), benchmarked (`benchmarks/step.py`) and smoke-tested
anywhere. The labels do not depend on the inputs, so a model cannot generalise.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Annotated

import numpy as np

from mmjax.config import AtLeast, Count, NonNegative
from mmjax.data.dataset import Dataset, Record, check_split
from mmjax.files import cache_folder
from mmjax.tokens import TargetSpec

SPLITS = ("train", "validation", "test")
RATE = 16_000


class Synthetic(Dataset):
    """Random inputs `image`, `text` and `audio` with target `label`; a split repeats a few examples."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Sizes of the raw data, before processing by the modalities.

        Attributes:
          image: (height, width, channels) in pixels.
          letters: characters per text.
          recording: audio duration in seconds.
          classes: number of classes of the label.
          examples: examples per split.
        """

        image: tuple[Count, ...] = (32, 32, 3)
        letters: NonNegative = 32
        recording: Annotated[float, AtLeast(0.01)] = 1.0
        classes: Annotated[int, AtLeast(2)] = 10
        examples: Count = 256

        def __post_init__(self):
            if len(self.image) != 3 or self.image[2] > 4:
                raise ValueError(f"image = {self.image} is not an image size; give (height, width, 1 to 4 channels)")

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
        """Returns the cache folder; synthetic data has no files."""
        return cache_folder()

    def source(self, split: str) -> SyntheticSource:
        check_split(split, self.splits)
        return SyntheticSource(self.config, SPLITS.index(split))


@dataclasses.dataclass(frozen=True)
class SyntheticSource:
    """Records of one split, each a function of (split, index)."""

    config: Synthetic.Config
    split: int

    def __len__(self) -> int:
        return self.config.examples

    def __getitem__(self, index: int) -> Record:
        rng = np.random.Generator(np.random.Philox(key=[index, self.split + 1]))
        image = rng.integers(0, 256, self.config.image, np.uint8)
        text = rng.integers(ord("a"), ord("z") + 1, self.config.letters, np.uint8).tobytes().decode()
        samples = rng.integers(-(2**12), 2**12, max(1, round(self.config.recording * RATE)), np.int16)
        return Record({"image": image, "text": text, "audio": (samples, RATE)}, {"label": index % self.config.classes})
