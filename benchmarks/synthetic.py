"""Random pictures and sentences of any size, made in memory: what a step is measured on where there is no data.

A recipe that `benchmarks/step.py` reads may name it, `config.data = {"name": "synthetic", "image": [224, 224, 3], …}`.
It is no dataset of mmjax, since there is nothing in it to learn.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from mmjax.config import Count, NonNegative
from mmjax.data import DATASETS
from mmjax.data.dataset import Record, check_split
from mmjax.files import cache_folder
from mmjax.tokens import TargetSpec

SPLITS = ("train", "validation", "test")


class Synthetic:
    """Inputs `image` and `text`, target `label`, all random, some few examples again and again."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Sizes.

        Attributes:
          image: [height, width, channels] in pixels.
          letters: of a sentence.
          classes: of the label.
          examples: different ones in each split.
        """

        image: tuple[Count, ...] = (32, 32, 3)
        letters: NonNegative = 32
        classes: Count = 10
        examples: Count = 256

    def __init__(self, config: Config):
        self.config = config

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS

    @property
    def inputs(self) -> Mapping[str, str]:
        return {"image": "image", "text": "text"}

    @property
    def targets(self) -> Mapping[str, TargetSpec]:
        return {"label": TargetSpec((), "int32", tuple(map(str, range(self.config.classes))))}

    def prepare(self) -> pathlib.Path:
        """Nothing is kept in files."""
        return cache_folder()

    def source(self, split: str) -> SyntheticSource:
        check_split(split, self.splits)
        return SyntheticSource(self.config)

    def ceilings(self, split: str) -> dict[str, dict[str, float]]:
        """There is nothing to learn."""
        return {}


@dataclasses.dataclass(frozen=True)
class SyntheticSource:
    """Each record is a function of its number."""

    config: Synthetic.Config

    def __len__(self) -> int:
        return self.config.examples

    def __getitem__(self, index: int) -> Record:
        draws = np.random.Generator(np.random.Philox(key=[index, 1]))
        image = draws.integers(0, 256, self.config.image, np.uint8)
        text = draws.integers(ord("a"), ord("z") + 1, self.config.letters, np.uint8).tobytes().decode()
        return Record({"image": image, "text": text}, {"label": index % self.config.classes})


def install() -> None:
    """Makes the name `synthetic` known in this process."""
    DATASETS["synthetic"] = Synthetic


def transformer_recipe(depth: int) -> ConfigDict:
    """A Transformer so small that what is left of a step is what the host does for it.

    Needs `install`.
    """
    config = ConfigDict()
    config.data = {"name": "synthetic", "letters": 7, "inputs": {"text": {"length": 8}}}
    trunk = {"width": 8, "depth": depth, "heads": 1, "hidden": 8}
    config.model = {
        "encoders": {"text": {"kind": "text_transformer", **trunk}},
        "fusion": {"kind": "concatenation", "width": 8, "hidden": 8},
    }
    config.tasks = {"label": {"kind": "classification"}}
    config.optimizer = {"name": "adamw", "weight_decay": 0.05, "clip": 1.0}
    config.schedule = {"kind": "cosine", "peak": 1e-3, "warmup": 10}
    config.train = {"steps": 1000, "batch_size": 8}
    config.mesh = {"data": -1}
    config.evaluate = {"every": 0, "splits": []}
    return config
