"""TFDS builder of `digits`: pairs images, synthetic speech and sentences into records.

Imports TFDS and scikit-learn, so only preparation imports this module.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import sklearn.datasets
import tensorflow_datasets as tfds

from mmjax.data.stable_rng import interpolate, shuffled, stable_rng
from mmjax.datasets.digits import arithmetic, speech
from mmjax.datasets.digits.paired_builder import PairedBuilder
from mmjax.datasets.digits.paired_digits import VERSIONS, latents
from mmjax.datasets.digits.voices import SPLITS, utterance

# Copies per split: of each (a, b, operation) in "arithmetic", of each digit in "matched".
COPIES = {
    "arithmetic": {"train": 14, "validation": 1, "test": 2, "accents": 2},
    "matched": {"train": 400, "validation": 50, "test": 100, "accents": 100},
}

# Each digit's images per split, as slices of a random permutation.
_IMAGES = {"train": slice(0, 120), "validation": slice(120, 140), "test": slice(140, None)}
_IMAGES["accents"] = _IMAGES["test"]

_MAX_PAUSE_SECONDS = 0.1
_GAINS = (0.3, 1.0)


@dataclasses.dataclass(frozen=True)
class ExamplePlan:
    """Components of one example.

    Attributes:
      image_index: index into scikit-learn's digits.
      utterance: spoken digit.
      text: sentence.
      targets: {target name: class name}.
      pause: silence before the word, in samples.
      gain: amplitude factor.
    """

    image_index: int
    utterance: speech.Utterance
    text: str
    targets: dict[str, str]
    pause: int
    gain: float


def plan_examples(task: str, split: str) -> list[ExamplePlan]:
    """Plans all examples of a split, with every combination of latents equally often."""
    examples = latents(task, COPIES[task][split])
    uniforms = stable_rng(f"{task}:{split}".encode()).random((len(examples), 6))
    # Cycle through each digit's images, so that their counts differ by at most 1.
    images = {digit: itertools.cycle(_image_indices(split, digit)) for digit in range(10)}
    plans = []
    for example, u in zip(examples, uniforms, strict=True):
        spoken = utterance(arithmetic.WORDS[example.audio_digit], split, u[:4])
        pause = round(_MAX_PAUSE_SECONDS * speech.RATE * u[4])
        gain = interpolate(_GAINS, u[5])
        plans.append(ExamplePlan(next(images[example.image_digit]), spoken, example.text, example.targets, pause, gain))
    return plans


class DigitsBuilder(PairedBuilder):
    """TFDS builder of handwritten digits, spoken digits, and sentences; see `mmjax.datasets.digits.digits`."""

    name = "digits"
    VERSION = tfds.core.Version(VERSIONS["digits"])

    @property
    def size(self) -> int:
        """Total of the progress bar. Each example counts twice: once for synthesis and once for writing."""
        per_copy = 600 if self.builder_config.name == "arithmetic" else 10
        return 2 * per_copy * sum(COPIES[self.builder_config.name].values())

    def _info(self) -> tfds.core.DatasetInfo:
        return self._dataset_info((8, 8), {"voice": tfds.features.Text()}, "https://archive.ics.uci.edu/dataset/80")

    def _split_generators(self, download_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        plans = {split: plan_examples(self.builder_config.name, split) for split in SPLITS}
        # Synthesise all splits as one list: espeak-ng's output depends on earlier utterances, so their order matters.
        waveforms = iter(
            speech.synthesise([example.utterance for split in plans.values() for example in split], self.advance)
        )
        by_split = {split: [next(waveforms) for _ in examples] for split, examples in plans.items()}
        return {split: self._generate_examples(split, plans[split], by_split[split]) for split in plans}

    def _generate_examples(self, split: str, plans: list[ExamplePlan], waveforms: list[np.ndarray]):
        images = _scikit_learn().images
        for index, (example, waveform) in enumerate(zip(plans, waveforms, strict=True)):
            audio = np.concatenate([np.zeros(example.pause), example.gain * waveform])
            if len(audio) > speech.RATE:
                raise RuntimeError(f"{example.utterance} takes {len(audio) / speech.RATE:.2f} s, more than 1 s")
            key = f"{split}-{index:05}"
            self.advance(1)
            stored = {
                "key": key,
                "image": np.rint(images[example.image_index] * (255 / 16)).astype(np.uint8),
                "audio": np.rint(audio).astype(np.int16),
                "text": example.text,
                "voice": example.utterance.voice,
                "picture": example.image_index,
                **example.targets,
            }
            yield key, stored


def _image_indices(split: str, digit: int) -> list[int]:
    """Returns the indices of a digit's images in a split, in a fixed random order."""
    indices = np.flatnonzero(_scikit_learn().target == digit)
    return shuffled([int(index) for index in indices], stable_rng(f"pictures:{digit}".encode()))[_IMAGES[split]]


@functools.cache
def _scikit_learn() -> Any:
    return sklearn.datasets.load_digits()
