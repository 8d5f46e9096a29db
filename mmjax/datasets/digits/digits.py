"""Digits that are seen, heard and asked about: the dataset of the first example, ready in seconds and never downloaded.

The pictures are scikit-learn's 8 x 8 handwritten digits, the sounds are spoken by espeak-ng in some sixty voices, and
the sentences are ours. In the task `arithmetic` every input tells only a part, so that all three are needed; in the
task `matched` they tell the same thing, for contrastive training and for studying absence.

Splits: `train`; `validation` and `test`, whose pictures and voices are not in train (nor in each other); and `accents`,
with the pictures and voices of test in accents of English that are not in train.
"""

from __future__ import annotations

import pathlib

from mmjax.datasets import cache
from mmjax.datasets.digits import speech
from mmjax.datasets.digits.paired_digits import INPUTS, TARGETS, VERSIONS, PairedConfig, PairedDigits
from mmjax.datasets.digits.voices import SPLITS
from mmjax.files import cache_folder

__all__ = ["INPUTS", "SPLITS", "TARGETS", "Digits"]


class Digits(PairedDigits):
    """The digits dataset, one of two tasks.

    Raw inputs: image uint8 [8, 8], light on black; audio (int16 [n], 16,000 Hz), at most 1 s; text, at most 31 bytes.
    """

    name = "digits"
    all_splits = SPLITS
    Config = PairedConfig

    def __init__(self, config: PairedConfig):
        super().__init__(config)
        self._folder = cache_folder(config.cache) / self.name / config.task / VERSIONS[self.name]

    def prepare(self) -> pathlib.Path:
        """Makes the records with espeak-ng and TFDS, unless they are in the cache, and returns their folder.

        Raises:
          UserError: if espeakng-loader is not installed, or the cache cannot be written.
        """
        if not self._folder.exists():
            # Before anything is written.
            speech.check_installed()
        return cache.prepare_once(self._folder, self._write_records, cache.records_checksum)

    def _write_records(self, folder: pathlib.Path) -> pathlib.Path:
        def make_builder():
            # TFDS and scikit-learn take seconds to import; who reads prepared records does without the second.
            from mmjax.datasets.digits import digits_builder

            return digits_builder.DigitsBuilder(
                data_dir=str(folder), config=self.config.task, file_format="array_record"
            )

        return self._write(make_builder)
