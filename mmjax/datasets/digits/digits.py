"""Digits dataset: image, audio and text of digits, generated in seconds without a download.

Images are scikit-learn's 8 x 8 handwritten digits, audio is synthesised by espeak-ng in some sixty voices, and the
sentences come from `mmjax.datasets.digits.arithmetic`. In the task `arithmetic` the inputs are complementary, so all
three are needed; in the task `matched` they are redundant, for contrastive training and studies of missing inputs.

Splits: `train`; `validation` and `test`, with images and voices of their own; and `accents`, with the images of `test`
and its voices in English accents that do not occur in `train`.
"""

from __future__ import annotations

import pathlib
from typing import Any

from mmjax.datasets.digits.paired_digits import INPUTS, TARGETS, VERSIONS, PairedDigits
from mmjax.datasets.digits.voices import SPLITS
from mmjax.files import cache_folder

__all__ = ["INPUTS", "SPLITS", "TARGETS", "Digits"]


class Digits(PairedDigits):
    """Digits dataset with task "arithmetic" or "matched".

    Raw inputs: image uint8 [8, 8], light on black; audio (int16 [n], 16,000 Hz), at most 1 s; text, at most 31 bytes.
    """

    name = "digits"
    all_splits = SPLITS

    @property
    def folder(self) -> pathlib.Path:
        return cache_folder(self.config.cache) / self.name / self.config.task / VERSIONS[self.name]

    def make_builder(self, folder: pathlib.Path) -> Any:
        # Imported here because scikit-learn takes seconds to import and reading prepared records does not need it.
        from mmjax.datasets.digits.digits_builder import DigitsBuilder

        return DigitsBuilder(data_dir=str(folder), config=self.config.task, file_format="array_record")
