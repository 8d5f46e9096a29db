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
from collections.abc import Sequence
from typing import Annotated, NamedTuple

from mmjax.config import Within
from mmjax.data import cache, speech
from mmjax.data.digit_files import DigitFiles, find, raw_folder
from mmjax.data.paired_digits import PairedConfig, PairedDigits
from mmjax.errors import UserError, nearest
from mmjax.files import cache_folder

# Raised whenever the records change, so that nobody goes on with old ones.
VERSION = "1.0.1"
SPLITS = ("train", "validation", "test")


class Speakers(NamedTuple):
    """Who speaks in each split."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


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
        return cache_folder(self.config.cache) / self.name / self.config.task / f"{VERSION}-{key}"

    def _write_records(self, folder: pathlib.Path) -> pathlib.Path:
        def make_builder():
            # TFDS takes seconds to import; who reads prepared records does without this.
            from mmjax.data import avmnist_builder

            material = avmnist_builder.gather(self.files, self.speakers, folder / "unpacked")
            return avmnist_builder.AvmnistBuilder(
                material=material,
                synthetic=self.config.synthetic,
                data_dir=str(folder),
                config=self.config.task,
                file_format="array_record",
            )

        return self._write(make_builder)


def choose_speakers(
    everybody: Sequence[str],
    held_out: str | tuple[str, ...] | None = None,
    validation: str | tuple[str, ...] | None = None,
) -> Speakers:
    """Shares the speakers out, as `Avmnist.Config` says.

    Raises:
      UserError: if a speaker is unknown or in two splits, or nobody is left to train on.
    """
    names = sorted(set(everybody))

    def chosen(asked: str | tuple[str, ...] | None, where: str, available: list[str]) -> tuple[str, ...]:
        if asked is None:
            return tuple(available[-1:])
        asked = (asked,) if isinstance(asked, str) and asked else tuple(asked)
        for name in asked:
            if name not in names:
                raise UserError(where, f"there are no recordings of a speaker {name!r}", nearest(name, names))
        return tuple(sorted(set(asked)))

    test = chosen(held_out, "data.held_out", names)
    others = [name for name in names if name not in test]
    held_back = chosen(validation, "data.validation", others)
    both = sorted(set(test) & set(held_back))
    if both:
        problem = f"{both[0]!r} is held out for test too"
        raise UserError("data.validation", problem, "choose on another speaker, never on one of test")
    train = tuple(name for name in others if name not in held_back)
    if not train:
        problem = f"of {', '.join(map(repr, names))} nobody is left to train on"
        remedy = "add recordings of others, name fewer in data.held_out, or set data.validation to []"
        raise UserError("data.held_out", problem, remedy)
    return Speakers(train, held_back, test)
