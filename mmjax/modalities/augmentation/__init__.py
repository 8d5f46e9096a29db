"""Augmentation: raw data of training examples, changed at random in ways that leave its meaning.

`AUGMENTATIONS` has a table for each kind of modality. Each entry is a class with a nested frozen dataclass `Config`,
called as `augmentation(raw, draws)`, which returns raw data of the same form; `draws` is a `numpy.random.Generator`
that belongs to the seed, the data step, the row and the place in the config, so that a batch stays a function of those.
What it reads from files it reads in `open()`, if it has one, which the pipeline calls before training.
A new one is one new file and one line in the table.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from mmjax.modalities.augmentation.affine import Affine
from mmjax.modalities.augmentation.colour import Colour
from mmjax.modalities.augmentation.crop import Crop
from mmjax.modalities.augmentation.each_frame import each_frame
from mmjax.modalities.augmentation.edit_words import EditWords
from mmjax.modalities.augmentation.equalise import Equalise
from mmjax.modalities.augmentation.erase import Erase
from mmjax.modalities.augmentation.flip import Flip
from mmjax.modalities.augmentation.noise import Noise
from mmjax.modalities.augmentation.paraphrase import Paraphrase
from mmjax.modalities.augmentation.points_dropout import PointsDropout
from mmjax.modalities.augmentation.points_jitter import PointsJitter
from mmjax.modalities.augmentation.points_rotation import PointsRotation
from mmjax.modalities.augmentation.points_scaling import PointsScaling
from mmjax.modalities.augmentation.rand_augment import RandAugment
from mmjax.modalities.augmentation.reverse import Reverse
from mmjax.modalities.augmentation.series_jitter import SeriesJitter
from mmjax.modalities.augmentation.series_scaling import SeriesScaling
from mmjax.modalities.augmentation.shift import Shift
from mmjax.modalities.augmentation.speed import Speed
from mmjax.modalities.augmentation.synonyms import Synonyms
from mmjax.modalities.augmentation.temporal_crop import TemporalCrop
from mmjax.modalities.augmentation.time_warp import TimeWarp


class Augmentation(Protocol):
    """One random change of raw data."""

    def __init__(self, config: Any): ...

    def __call__(self, raw: Any, draws: np.random.Generator) -> Any: ...


IMAGE: dict[str, type] = {
    "affine": Affine,
    "colour": Colour,
    "crop": Crop,
    "erase": Erase,
    "flip": Flip,
    "rand_augment": RandAugment,
}
AUDIO: dict[str, type] = {"equalise": Equalise, "noise": Noise, "shift": Shift, "speed": Speed}
TEXT: dict[str, type] = {"edit_words": EditWords, "paraphrase": Paraphrase, "synonyms": Synonyms}
SERIES: dict[str, type] = {"jitter": SeriesJitter, "scaling": SeriesScaling, "time_warp": TimeWarp}
POINTS: dict[str, type] = {
    "dropout": PointsDropout,
    "jitter": PointsJitter,
    "rotation": PointsRotation,
    "scaling": PointsScaling,
}
TIME: dict[str, type] = {"reverse": Reverse, "temporal_crop": TemporalCrop}
AUGMENTATIONS: dict[str, dict[str, type]] = {
    "image": IMAGE,
    "audio": AUDIO,
    "text": TEXT,
    "series": SERIES,
    "points": POINTS,
    "video": {**TIME, **{kind: each_frame(cls) for kind, cls in IMAGE.items()}},
}
