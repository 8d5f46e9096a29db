"""AV-MNIST dataset: MNIST images paired with recordings of spoken digits, and generated sentences.

Modelled on AV-MNIST (Liang et al., MultiBench, 2021), with both tasks of `digits`. Nothing is downloaded: the user
provides MNIST's idx files and recordings named DIGIT_SPEAKER_INDEX.wav, such as the Free Spoken Digit Dataset.

Splits: `train`; `validation`, held-out speakers for model selection; and `test`, other held-out speakers. Neither
speakers nor images overlap between splits.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Annotated, Any

from mmjax.config import FilePath, Within
from mmjax.datasets.digits.digit_files import DigitFiles, find_digit_files, raw_folder
from mmjax.datasets.digits.paired_digits import VERSIONS, PairedConfig, PairedDigits
from mmjax.datasets.digits.speakers import SPLITS, Speakers, choose_speakers
from mmjax.files import cache_folder


class Avmnist(PairedDigits):
    """AV-MNIST from the user's files, with task "arithmetic" or "matched".

    Raw inputs: image uint8 [28, 28], light on black; audio (int16 [n], sample rate of the recording in Hz); text, at
    most 31 bytes.
    """

    name = "avmnist"
    all_splits = SPLITS

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(PairedConfig):
        """Options of `Avmnist`, in addition to those of `PairedConfig`.

        Attributes:
          path: folder with the idx files and the recordings, at any depth up to 5; by default $MMJAX_DATA, or else
            `raw` in the cache folder.
          held_out: test speaker or speakers; by default the last in alphabetical order.
          validation: validation speaker or speakers; by default the last remaining one. [] removes the validation
            split, for the final training after model selection.
          synthetic: fraction of training examples with audio synthesised by espeak-ng, in many voices.
        """

        path: Annotated[str, FilePath()] = ""
        held_out: str | tuple[str, ...] | None = None
        validation: str | tuple[str, ...] | None = None
        synthetic: Annotated[float, Within(0.0, 1.0)] = 0.0

        def __post_init__(self):
            if self.held_out is not None and not self.held_out:
                raise ValueError("held_out is empty; name a speaker, or remove the key")

    @property
    def splits(self) -> tuple[str, ...]:
        speakers = self.config.validation
        return SPLITS if speakers is None or speakers else ("train", "test")

    @functools.cached_property
    def files(self) -> DigitFiles:
        """Raw files. Raises UserError if files are missing."""
        return find_digit_files(raw_folder(self.config.path))

    @property
    def needs_speech(self) -> bool:  # type: ignore[override]
        """True if some examples have synthetic audio."""
        return bool(self.config.synthetic)

    @functools.cached_property
    def speakers(self) -> Speakers:
        """Speakers of each split. Raises UserError like `choose_speakers`."""
        names = [recording.speaker for recording in self.files.recordings]
        return choose_speakers(names, self.config.held_out, self.config.validation)

    @functools.cached_property
    def folder(self) -> pathlib.Path:
        # The folder name changes with the raw files, the speaker splits and the synthetic fraction.
        identity = json.dumps([self.files.fingerprint, self.speakers, self.config.synthetic])
        key = hashlib.sha256(identity.encode()).hexdigest()[:16]
        return cache_folder(self.config.cache) / self.name / self.config.task / f"{VERSIONS[self.name]}-{key}"

    def make_builder(self, folder: pathlib.Path) -> Any:
        # Imported here because reading prepared records does not need the builder.
        from mmjax.datasets.digits import avmnist_builder

        return avmnist_builder.AvmnistBuilder(
            raw_data=avmnist_builder.load_raw_data(self.files, self.speakers, folder / "unpacked"),
            synthetic=self.config.synthetic,
            data_dir=str(folder),
            config=self.config.task,
            file_format="array_record",
        )
