"""Makes the records of `avmnist`: which picture, which recording and which sentence go together; TFDS writes them.

This file imports TFDS; only preparation imports it.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from mmjax.data.draws import draws, turns
from mmjax.datasets.digits import arithmetic, speech
from mmjax.datasets.digits.digit_files import DigitFiles, Recording, read_images, read_recordings
from mmjax.datasets.digits.paired_digits import USES_IN_A_COPY, VERSIONS, features, latents
from mmjax.datasets.digits.speakers import SPLITS, Speakers
from mmjax.datasets.digits.voices import utterance
from mmjax.errors import UserError
from mmjax.modalities.audio import Waveform
from mmjax.modalities.filters import resample

# How often each (a, b, operation), or each digit, occurs at most: with fewer files less often, see `copies`.
LARGEST_COPIES = {
    "arithmetic": {"train": 40, "validation": 2, "test": 5},
    "matched": {"train": 2400, "validation": 200, "test": 500},
}

# Of the pictures of a digit; where there are test files of their own, test takes none of the others.
_SHARES = {"validation": 1 / 12, "test": 1 / 6}


@dataclasses.dataclass(frozen=True)
class Material:
    """The raw data in memory, shared out.

    Attributes:
      pixels: uint8 [count, height, width].
      images: {split: {digit: numbers of images}}.
      waveforms: {name of a recording: (int16 [n], rate)}.
      recordings: {split: {digit: recordings}}.
    """

    pixels: np.ndarray
    images: dict[str, dict[int, list[int]]]
    waveforms: dict[str, Waveform]
    recordings: dict[str, dict[int, list[Recording]]]

    @property
    def rate(self) -> int:
        """The most frequent rate of the recordings, in Hz."""
        return collections.Counter(rate for _, rate in self.waveforms.values()).most_common(1)[0][0]

    def copies(self, task: str, split: str) -> int:
        """As many as it takes to use every picture and every recording, up to the largest number."""
        pools: list[Sequence[Any]] = [*self.images[split].values(), *self.recordings[split].values()]
        needed = -(-max(len(pool) for pool in pools) // USES_IN_A_COPY[task])
        return min(needed, LARGEST_COPIES[task][split])


@dataclasses.dataclass(frozen=True)
class Plan:
    """One example before it is made: numbers of the picture and names as in `Material`.

    Attributes:
      said: what espeak-ng says in the recording's place, or None.
    """

    picture: int
    recording: Recording
    said: speech.Utterance | None
    text: str
    targets: dict[str, str]


def gather(files: DigitFiles, speakers: Speakers, folder: pathlib.Path) -> Material:
    """Reads everything and shares it out.

    Args:
      folder: where to unpack archives.

    Raises:
      UserError: if a file is damaged, or a split has no picture or no recording of some digit.
    """
    pixels, images = _share_images(files)
    recordings = {
        split: {
            digit: [each for each in files.recordings if each.speaker in names and each.digit == digit]
            for digit in range(10)
        }
        for split, names in speakers._asdict().items()
        if names
    }
    for split, of_digits in recordings.items():
        for digit, pool in of_digits.items():
            if not pool:
                who = ", ".join(map(repr, getattr(speakers, split)))
                problem = f"{who} in {split} never say{'s' if len(getattr(speakers, split)) == 1 else ''} {digit}"
                raise UserError("data.held_out", problem, "add the recordings, or choose other speakers")
    wanted = [each for of_digits in recordings.values() for pool in of_digits.values() for each in pool]
    waveforms = {recording.name: waveform for recording, waveform in read_recordings(wanted, folder)}
    return Material(pixels, {split: images[split] for split in recordings}, waveforms, recordings)


def _share_images(files: DigitFiles) -> tuple[np.ndarray, dict[str, dict[int, list[int]]]]:
    """Returns (pixels, {split: {digit: numbers}}).

    What an image shows decides its split, and not its place in the file: files may be sorted, and no image that is in
    them twice comes into two splits.
    """
    tests = [read_images(*pair) for pair in files.test_images.items()]
    parts = tests + [read_images(*pair) for pair in files.images.items()]
    shapes = {images.shape[1:] for images, _ in parts}
    if len(shapes) > 1:
        raise UserError("data.path", f"images of sizes {sorted(shapes)}", "put images of one size there")
    pixels = np.concatenate([images for images, _ in parts])
    digits = np.concatenate([labels for _, labels in parts])
    own_test = np.arange(len(digits)) < sum(len(labels) for _, labels in tests)
    splits: dict[str, dict[int, list[int]]] = {split: {} for split in SPLITS}
    # The first of several that are equal stays, which is the one of the test files.
    distinct: dict[bytes, int] = {}
    for number, image in enumerate(pixels):
        distinct.setdefault(hashlib.sha256(image.tobytes()).digest(), number)
    order = [distinct[key] for key in sorted(distinct)]
    for digit in range(10):
        numbers = [number for number in order if digits[number] == digit]
        test = [number for number in numbers if own_test[number]]
        rest = [number for number in numbers if not own_test[number]]
        if not files.test_images:
            count = max(1, round(len(rest) * _SHARES["test"]))
            test, rest = rest[:count], rest[count:]
        count = max(1, round(len(numbers) * _SHARES["validation"]))
        for split, pool in zip(SPLITS, (rest[count:], rest[:count], test), strict=True):
            if not pool:
                problem = f"{len(numbers)} different images of the digit {digit} do not fill three splits"
                raise UserError("data.path", problem, "put more images there")
            splits[split][digit] = pool
    return pixels, splits


def plan(task: str, split: str, material: Material, synthetic: float = 0.0) -> list[Plan]:
    """All examples of a split, with every combination of latents equally often."""

    def key(purpose: str, digit: int = 0) -> bytes:
        return hashlib.sha256(f"{task}:{split}:{purpose}:{digit}".encode()).digest()

    examples = latents(task, material.copies(task, split))
    images = {digit: turns(pool, draws(key("image", digit))) for digit, pool in material.images[split].items()}
    recordings = {
        digit: turns(pool, draws(key("recording", digit))) for digit, pool in material.recordings[split].items()
    }
    drawn = draws(key("synthetic")).random((len(examples), 5))
    share = synthetic if split == "train" else 0.0
    return [
        Plan(
            picture=next(images[example.seen]),
            recording=next(recordings[example.heard]),
            said=utterance(arithmetic.WORDS[example.heard], "train", draw[1:]) if draw[0] < share else None,
            text=example.text,
            targets=example.targets,
        )
        for example, draw in zip(examples, drawn, strict=True)
    ]


class AvmnistBuilder(tfds.core.GeneratorBasedBuilder):
    """Handwritten digits, recordings of spoken digits, and sentences about them; see `Avmnist`."""

    name = "avmnist"
    VERSION = tfds.core.Version(VERSIONS["avmnist"])
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="arithmetic", description="Seen digit, heard digit, and what to do with them."),
        tfds.core.BuilderConfig(name="matched", description="The same digit seen, heard and written."),
    ]

    # Nothing is downloaded. TFDS would look for a file of checksums by a package that it does not require.
    url_infos: ClassVar[dict[str, Any]] = {}

    # Is called with the number of utterances spoken, or of examples written, since the last call.
    advance: Callable[[int], None] = staticmethod(lambda count: None)

    def __init__(self, *, material: Material, synthetic: float = 0.0, config: str, **options: Any):
        self._material = material
        self._plans = {split: plan(config, split, material, synthetic) for split in material.images}
        super().__init__(config=config, **options)

    @property
    def size(self) -> int:
        """The number of examples of all splits, and of utterances."""
        return sum(len(plans) + sum(each.said is not None for each in plans) for plans in self._plans.values())

    def _info(self) -> tfds.core.DatasetInfo:
        stored = features(tfds, self.builder_config.name, self._material.pixels.shape[1:]) | {
            "rate": tfds.features.Scalar(dtype=np.int32),
            "speaker": tfds.features.Text(),
            "recording": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.builder_config.description,
            features=tfds.features.FeaturesDict(stored),
            homepage="https://github.com/Jakobovski/free-spoken-digit-dataset",
        )

    def _split_generators(self, download_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        said = [each.said for plans in self._plans.values() for each in plans if each.said]
        spoken = iter(speech.synthesise(said, self.advance) if said else [])
        # Only train has some, so that its order is all that matters.
        return {split: self._generate_examples(split, spoken) for split in self._plans}

    def _generate_examples(self, split: str, spoken: Iterator[np.ndarray]) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, each in enumerate(self._plans[split]):
            samples, rate = self._material.waveforms[each.recording.name]
            if each.said:
                rate = self._material.rate
                # Recorded and synthetic speech must not differ in what a lower rate leaves out.
                lower = resample(next(spoken).astype(np.float32), speech.RATE, rate)
                samples = np.rint(lower.clip(-32768, 32767)).astype(np.int16)
            key = f"{split}-{number:06}"
            self.advance(1)
            yield (
                key,
                {
                    "key": key,
                    "image": self._material.pixels[each.picture],
                    "audio": samples,
                    "rate": rate,
                    "text": each.text,
                    "speaker": each.said.voice if each.said else each.recording.speaker,
                    "recording": "" if each.said else each.recording.name,
                    "picture": each.picture,
                    **each.targets,
                },
            )
