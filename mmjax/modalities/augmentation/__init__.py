"""Data augmentation: random label-preserving transformations of raw training examples.

`AUGMENTATIONS` has one table per modality. Each entry is a class with a nested frozen dataclass `Config`, called as
`augmentation(raw, rng)`, which returns raw data of the same form. `rng` is a `numpy.random.Generator` keyed by the
seed, the data step, the row and the index in the config, so a batch stays a function of seed and step. Augmentations
that read files do so in an optional method `open()`, which the pipeline calls before training. To add an augmentation,
write one file and add one line to the table.
"""

from __future__ import annotations

from mmjax.modalities.augmentation.affine import Affine
from mmjax.modalities.augmentation.base import Augmentation
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
