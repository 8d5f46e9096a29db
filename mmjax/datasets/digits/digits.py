"""Digits dataset: image, audio and text of digits, generated in seconds without a download.

Images are scikit-learn's 8 x 8 handwritten digits, audio is synthesised by espeak-ng in some sixty voices, and the
sentences come from `mmjax.datasets.digits.arithmetic`. In the task `arithmetic` the inputs are complementary, so all
three are needed; in the task `matched` they are redundant, for contrastive training and studies of missing inputs.

Splits: `train`; `validation` and `test`, with images and voices of their own; and `accents`, with the images of `test`
and its voices in English accents that do not occur in `train`.
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
    """Digits dataset with task "arithmetic" or "matched".

    Raw inputs: image uint8 [8, 8], light on black; audio (int16 [n], 16,000 Hz), at most 1 s; text, at most 31 bytes.
    """

    name = "digits"
    all_splits = SPLITS
    Config = PairedConfig

    def __init__(self, config: PairedConfig):
        super().__init__(config)
        self._folder = cache_folder(config.cache) / self.name / config.task / VERSIONS[self.name]

    def prepare(self) -> pathlib.Path:
        """Generates the records with espeak-ng and TFDS, unless they are cached, and returns their folder.

        Raises:
          UserError: if espeakng-loader is not installed, or the cache cannot be written.
        """
        if not self._folder.exists():
            # Fail before anything is written.
            speech.check_installed()
        return cache.prepare_once(self._folder, self._write_records, cache.records_checksum)

    def _write_records(self, folder: pathlib.Path) -> pathlib.Path:
        def make_builder():
            # Imported here because scikit-learn takes seconds to import and reading prepared records does not need it.
            from mmjax.datasets.digits import digits_builder

            return digits_builder.DigitsBuilder(
                data_dir=str(folder), config=self.config.task, file_format="array_record"
            )

        return self._write(make_builder)
