"""Real handwriting and real voices: MNIST's pictures paired with recordings of spoken digits, and our sentences.

After AV-MNIST (Liang et al., MultiBench, 2021), with both tasks of `digits`. Nothing is downloaded: the user brings
MNIST's idx files and recordings named DIGIT_SPEAKER_INDEX.wav, as those of the Free Spoken Digit Dataset are.

Splits: `train`; `test`, the speakers held out; and `validation`, other speakers held out, for every choice that is to
be made before anybody looks at `test`. No speaker and no picture is in two splits.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Annotated

from mmjax.config import Within
from mmjax.datasets import cache
from mmjax.datasets.digits import speech
from mmjax.datasets.digits.digit_files import DigitFiles, find, raw_folder
from mmjax.datasets.digits.paired_digits import VERSIONS, PairedConfig, PairedDigits
from mmjax.datasets.digits.speakers import SPLITS, Speakers, choose_speakers
from mmjax.files import cache_folder


class Avmnist(PairedDigits):
    """MNIST's digits with recordings of spoken digits, one of two tasks; the files are the user's own.

    Raw inputs: image uint8 [28, 28], light on black; audio (int16 [n], the recording's own rate); text, at most 31
    bytes.
    """

    name = "avmnist"
    all_splits = SPLITS

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(PairedConfig):
        """Which digits, from where, and who speaks in which split.

        Attributes:
          path: folder with the idx files and the recordings, in folders of their own or not; by default $MMJAX_DATA, or
            else the folder `raw` in the cache folder.
          held_out: the speaker or speakers of test; by default the last in alphabetical order.
          validation: the speaker or speakers of validation; by default the last of the others. [] holds nobody back and
            leaves the split out: for the last training, after all choices.
          synthetic: share of the training examples whose digit espeak-ng says instead, in many voices.
        """

        path: str = ""
        held_out: str | tuple[str, ...] | None = None
        validation: str | tuple[str, ...] | None = None
        synthetic: Annotated[float, Within(0.0, 1.0)] = 0.0

        def __post_init__(self):
            if self.held_out is not None and not self.held_out:
                raise ValueError("held_out names nobody; name a speaker, or leave it out")

    @property
    def splits(self) -> tuple[str, ...]:
        chosen = self.config.validation
        return SPLITS if chosen is None or chosen else ("train", "test")

    @functools.cached_property
    def files(self) -> DigitFiles:
        """The raw files. Raises UserError, saying what to put where, if they are not there."""
        return find(raw_folder(self.config.path))

    def prepare(self) -> pathlib.Path:
        """Makes the records with TFDS, unless they are in the cache, and returns their folder.

        Raises:
          UserError: if the raw files are missing or damaged, a speaker is unknown, espeakng-loader is needed and not
            installed, or the cache cannot be written.
        """
        if self.config.synthetic and not self._folder.exists():
            # Before anything is written.
            speech.check_installed()
        return cache.prepare_once(self._folder, self._write_records, cache.records_checksum)

    @functools.cached_property
    def speakers(self) -> Speakers:
        """Who speaks in which split. Raises UserError, as `choose_speakers` does."""
        everybody = [recording.speaker for recording in self.files.recordings]
        return choose_speakers(everybody, self.config.held_out, self.config.validation)

    @functools.cached_property
    def _folder(self) -> pathlib.Path:
        # Another file, another speaker: another folder.
        identity = json.dumps([self.files.fingerprint, self.speakers, self.config.synthetic])
        key = hashlib.sha256(identity.encode()).hexdigest()[:16]
        return cache_folder(self.config.cache) / self.name / self.config.task / f"{VERSIONS[self.name]}-{key}"

    def _write_records(self, folder: pathlib.Path) -> pathlib.Path:
        def make_builder():
            # TFDS takes seconds to import; who reads prepared records does without this.
            from mmjax.datasets.digits import avmnist_builder

            material = avmnist_builder.gather(self.files, self.speakers, folder / "unpacked")
            return avmnist_builder.AvmnistBuilder(
                material=material,
                synthetic=self.config.synthetic,
                data_dir=str(folder),
                config=self.config.task,
                file_format="array_record",
            )

        return self._write(make_builder)
