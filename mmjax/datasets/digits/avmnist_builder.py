"""TFDS builder of `avmnist`: pairs images, recordings and sentences into records.

Imports TFDS, so only preparation imports this module.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mmjax.data.stable_rng import shuffled_cycle, stable_rng
from mmjax.datasets.digits import arithmetic, speech
from mmjax.datasets.digits.digit_files import DigitFiles, Recording, read_images, read_recordings
from mmjax.datasets.digits.paired_builder import PairedBuilder
from mmjax.datasets.digits.paired_digits import USES_PER_COPY, VERSIONS, latents
from mmjax.datasets.digits.speakers import SPLITS, Speakers
from mmjax.datasets.digits.voices import utterance
from mmjax.errors import UserError
from mmjax.modalities.filters import resample
from mmjax.modalities.recordings import Waveform

# Maximum copies of each (a, b, operation), or of each digit; small raw data needs fewer, see `RawData.copies`.
MAX_COPIES = {
    "arithmetic": {"train": 40, "validation": 2, "test": 5},
    "matched": {"train": 2400, "validation": 200, "test": 500},
}

# Fraction of a digit's images per split. If MNIST's test files exist, "test" consists of them alone.
_FRACTIONS = {"validation": 1 / 12, "test": 1 / 6}


@dataclasses.dataclass(frozen=True)
class RawData:
    """Raw images and recordings in memory, divided into splits.

    Attributes:
      pixels: uint8 [N, H, W], all images.
      images: {split: {digit: indices into `pixels`}}.
      waveforms: {recording name: (int16 [n], sample rate in Hz)}.
      recordings: {split: {digit: recordings}}.
    """

    pixels: np.ndarray
    images: dict[str, dict[int, list[int]]]
    waveforms: dict[str, Waveform]
    recordings: dict[str, dict[int, list[Recording]]]

    @property
    def rate(self) -> int:
        """Most frequent sample rate of the recordings, in Hz."""
        return collections.Counter(rate for _, rate in self.waveforms.values()).most_common(1)[0][0]

    def copies(self, task: str, split: str) -> int:
        """Returns the number of copies needed to use every image and every recording, capped at `MAX_COPIES`."""
        pools: list[Sequence[Any]] = [*self.images[split].values(), *self.recordings[split].values()]
        needed = -(-max(len(pool) for pool in pools) // USES_PER_COPY[task])
        return min(needed, MAX_COPIES[task][split])


@dataclasses.dataclass(frozen=True)
class ExamplePlan:
    """Components of one example.

    Attributes:
      image_index: index into `RawData.pixels`.
      recording: spoken digit.
      utterance: synthetic speech that replaces the recording, or None.
      text: sentence.
      targets: {target name: class name}.
    """

    image_index: int
    recording: Recording
    utterance: speech.Utterance | None
    text: str
    targets: dict[str, str]


def load_raw_data(files: DigitFiles, speakers: Speakers, folder: pathlib.Path) -> RawData:
    """Reads all images and recordings and divides them into splits.

    Args:
      files: raw files.
      speakers: speakers of each split.
      folder: folder for unpacked archives.

    Raises:
      UserError: if a file is damaged, or a split lacks images or recordings of some digit.
    """
    pixels, images = _split_images(files)
    recordings = {
        split: {
            digit: [take for take in files.recordings if take.speaker in names and take.digit == digit]
            for digit in range(10)
        }
        for split, names in speakers._asdict().items()
        if names
    }
    for split, by_digit in recordings.items():
        for digit, pool in by_digit.items():
            if not pool:
                names = ", ".join(map(repr, getattr(speakers, split)))
                problem = f"split {split!r} (speakers: {names}) has no recording of the digit {digit}"
                raise UserError("data.held_out", problem, "add the recordings, or choose other speakers")
    needed = [take for by_digit in recordings.values() for pool in by_digit.values() for take in pool]
    waveforms = {recording.name: waveform for recording, waveform in read_recordings(needed, folder)}
    return RawData(pixels, {split: images[split] for split in recordings}, waveforms, recordings)


def _split_images(files: DigitFiles) -> tuple[np.ndarray, dict[str, dict[int, list[int]]]]:
    """Deduplicates the images and divides them into splits by the SHA-256 of their pixels.

    The split does not depend on the order of the files, which may be sorted, and duplicates cannot leak across splits.

    Returns:
      (pixels uint8 [N, H, W], {split: {digit: indices into pixels}}).
    """
    tests = [read_images(*pair) for pair in files.test_images.items()]
    parts = tests + [read_images(*pair) for pair in files.images.items()]
    shapes = {images.shape[1:] for images, _ in parts}
    if len(shapes) > 1:
        raise UserError("data.path", f"images have different sizes: {sorted(shapes)}", "provide images of one size")
    pixels = np.concatenate([images for images, _ in parts])
    digits = np.concatenate([labels for _, labels in parts])
    from_test_files = np.arange(len(digits)) < sum(len(labels) for _, labels in tests)
    splits: dict[str, dict[int, list[int]]] = {split: {} for split in SPLITS}
    # Keep the first of several duplicates; test files come first, so their images stay in the test split.
    distinct: dict[bytes, int] = {}
    for index, image in enumerate(pixels):
        distinct.setdefault(hashlib.sha256(image.tobytes()).digest(), index)
    order = [distinct[key] for key in sorted(distinct)]
    for digit in range(10):
        indices = [index for index in order if digits[index] == digit]
        test = [index for index in indices if from_test_files[index]]
        rest = [index for index in indices if not from_test_files[index]]
        if not files.test_images:
            count = max(1, round(len(rest) * _FRACTIONS["test"]))
            test, rest = rest[:count], rest[count:]
        count = max(1, round(len(indices) * _FRACTIONS["validation"]))
        for split, pool in zip(SPLITS, (rest[count:], rest[:count], test), strict=True):
            if not pool:
                problem = f"{len(indices)} distinct images of the digit {digit} are too few for three splits"
                raise UserError("data.path", problem, "add more images")
            splits[split][digit] = pool
    return pixels, splits


def plan_examples(task: str, split: str, raw_data: RawData, synthetic: float = 0.0) -> list[ExamplePlan]:
    """Plans all examples of a split, with every combination of latents equally often.

    Args:
      task: "arithmetic" or "matched".
      split: split name.
      raw_data: images and recordings.
      synthetic: fraction of training examples with synthetic speech.
    """

    def rng(purpose: str, digit: int = 0) -> np.random.Generator:
        return stable_rng(hashlib.sha256(f"{task}:{split}:{purpose}:{digit}".encode()).digest())

    examples = latents(task, raw_data.copies(task, split))
    images = {digit: shuffled_cycle(pool, rng("image", digit)) for digit, pool in raw_data.images[split].items()}
    recordings = {
        digit: shuffled_cycle(pool, rng("recording", digit)) for digit, pool in raw_data.recordings[split].items()
    }
    uniforms = rng("synthetic").random((len(examples), 5))
    fraction = synthetic if split == "train" else 0.0
    return [
        ExamplePlan(
            image_index=next(images[example.image_digit]),
            recording=next(recordings[example.audio_digit]),
            utterance=utterance(arithmetic.WORDS[example.audio_digit], "train", u[1:]) if u[0] < fraction else None,
            text=example.text,
            targets=example.targets,
        )
        for example, u in zip(examples, uniforms, strict=True)
    ]


class AvmnistBuilder(PairedBuilder):
    """TFDS builder of handwritten digits, recordings of spoken digits, and sentences; see `Avmnist`."""

    name = "avmnist"
    VERSION = tfds.core.Version(VERSIONS["avmnist"])

    def __init__(self, *, raw_data: RawData, synthetic: float = 0.0, config: str, **options: Any):
        self._raw_data = raw_data
        self._plans = {split: plan_examples(config, split, raw_data, synthetic) for split in raw_data.images}
        super().__init__(config=config, **options)

    @property
    def size(self) -> int:
        """Total progress: number of examples and utterances of all splits."""
        return sum(len(plans) + sum(plan.utterance is not None for plan in plans) for plans in self._plans.values())

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        stored = {"rate": tfds.features.Scalar(dtype=np.int32), "speaker": text, "recording": text}
        homepage = "https://github.com/Jakobovski/free-spoken-digit-dataset"
        return self._dataset_info(self._raw_data.pixels.shape[1:], stored, homepage)

    def _split_generators(self, download_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        utterances = [plan.utterance for plans in self._plans.values() for plan in plans if plan.utterance]
        waveforms = iter(speech.synthesise(utterances, self.advance) if utterances else [])
        # Only train has utterances, so all splits can share the iterator.
        return {split: self._generate_examples(split, waveforms) for split in self._plans}

    def _generate_examples(self, split: str, waveforms: Iterator[np.ndarray]) -> Iterator[tuple[str, dict[str, Any]]]:
        for index, plan in enumerate(self._plans[split]):
            samples, rate = self._raw_data.waveforms[plan.recording.name]
            if plan.utterance:
                rate = self._raw_data.rate
                # Match the bandwidth of the recordings, which would otherwise give synthetic speech away.
                resampled = resample(next(waveforms).astype(np.float32), speech.RATE, rate)
                samples = np.rint(resampled.clip(-32768, 32767)).astype(np.int16)
            key = f"{split}-{index:06}"
            self.advance(1)
            yield (
                key,
                {
                    "key": key,
                    "image": self._raw_data.pixels[plan.image_index],
                    "audio": samples,
                    "rate": rate,
                    "text": plan.text,
                    "speaker": plan.utterance.voice if plan.utterance else plan.recording.speaker,
                    "recording": "" if plan.utterance else plan.recording.name,
                    "picture": plan.image_index,
                    **plan.targets,
                },
            )
