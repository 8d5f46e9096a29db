"""Makes the records of `digits`: which picture, which voice and which sentence go together, and TFDS writes them.

This file imports TFDS and scikit-learn; only preparation imports it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import sklearn.datasets
import tensorflow_datasets as tfds

from mmjax.data.draws import between, draws, shuffled
from mmjax.datasets.digits import arithmetic, speech
from mmjax.datasets.digits.paired_digits import VERSIONS, features, latents
from mmjax.datasets.digits.voices import SPLITS, utterance

# How often each (a, b, operation), or each digit, occurs.
COPIES = {
    "arithmetic": {"train": 14, "validation": 1, "test": 2, "accents": 2},
    "matched": {"train": 400, "validation": 50, "test": 100, "accents": 100},
}

_PICTURES = {"train": slice(0, 120), "validation": slice(120, 140), "test": slice(140, None)}
_PICTURES["accents"] = _PICTURES["test"]

_LONGEST_PAUSE = 0.1
_GAINS = (0.3, 1.0)


@dataclasses.dataclass(frozen=True)
class Plan:
    """One example before it is made.

    Attributes:
      picture: number of the picture in scikit-learn's set.
      utterance: what espeak-ng says.
      text: the sentence.
      targets: {name: the class's name}.
      pause: silence before the word, in samples.
      gain: factor of the amplitude.
    """

    picture: int
    utterance: speech.Utterance
    text: str
    targets: dict[str, str]
    pause: int
    gain: float


def plan(task: str, split: str) -> list[Plan]:
    """All examples of a split, with every combination of latents equally often."""
    examples = latents(task, COPIES[task][split])
    drawn = draws(f"{task}:{split}".encode()).random((len(examples), 6))
    pictures = {digit: _pictures(split, digit) for digit in range(10)}
    taken = dict.fromkeys(range(10), 0)
    result = []
    for example, draw in zip(examples, drawn, strict=True):
        # The pictures of a digit take turns, so that none is much more frequent than another.
        own = pictures[example.seen]
        picture = own[taken[example.seen] % len(own)]
        taken[example.seen] += 1
        spoken = utterance(arithmetic.WORDS[example.heard], split, draw[:4])
        pause = round(_LONGEST_PAUSE * speech.RATE * draw[4])
        result.append(Plan(picture, spoken, example.text, example.targets, pause, between(_GAINS, draw[5])))
    return result


class DigitsBuilder(tfds.core.GeneratorBasedBuilder):
    """Handwritten digits, spoken digits, and sentences about them; see `mmjax.datasets.digits.digits`."""

    name = "digits"
    VERSION = tfds.core.Version(VERSIONS["digits"])
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="arithmetic", description="Seen digit, heard digit, and what to do with them."),
        tfds.core.BuilderConfig(name="matched", description="The same digit seen, heard and written."),
    ]

    # Nothing is downloaded. TFDS would look for a file of checksums by a package that it does not require.
    url_infos: ClassVar[dict[str, Any]] = {}

    # Is called with the number of utterances spoken, or of examples written, since the last call.
    advance: Callable[[int], None] = staticmethod(lambda count: None)

    @property
    def size(self) -> int:
        """The number of examples of all splits, each of which is spoken and written."""
        per_copy = 600 if self.builder_config.name == "arithmetic" else 10
        return 2 * per_copy * sum(COPIES[self.builder_config.name].values())

    def _info(self) -> tfds.core.DatasetInfo:
        stored = features(tfds, self.builder_config.name, (8, 8)) | {"voice": tfds.features.Text()}
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.builder_config.description,
            features=tfds.features.FeaturesDict(stored),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, download_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        plans = {split: plan(self.builder_config.name, split) for split in SPLITS}
        # One list for all splits: what is said before changes what follows, so the order is part of the dataset.
        waveforms = iter(
            speech.synthesise([example.utterance for split in plans.values() for example in split], self.advance)
        )
        spoken = {split: [next(waveforms) for _ in examples] for split, examples in plans.items()}
        return {split: self._generate_examples(split, plans[split], spoken[split]) for split in plans}

    def _generate_examples(self, split: str, plans: list[Plan], waveforms: list[np.ndarray]):
        images = _scikit_learn().images
        for number, (example, waveform) in enumerate(zip(plans, waveforms, strict=True)):
            audio = np.concatenate([np.zeros(example.pause), example.gain * waveform])
            if len(audio) > speech.RATE:
                raise RuntimeError(f"{example.utterance} takes {len(audio) / speech.RATE:.2f} s, more than 1 s")
            key = f"{split}-{number:05}"
            self.advance(1)
            stored = {
                "key": key,
                "image": np.rint(images[example.picture] * (255 / 16)).astype(np.uint8),
                "audio": np.rint(audio).astype(np.int16),
                "text": example.text,
                "voice": example.utterance.voice,
                "picture": example.picture,
                **example.targets,
            }
            yield key, stored


def _pictures(split: str, digit: int) -> list[int]:
    """The numbers of a split's pictures of one digit, in a fixed random order."""
    numbers = np.flatnonzero(_scikit_learn().target == digit)
    return shuffled([int(number) for number in numbers], draws(f"pictures:{digit}".encode()))[_PICTURES[split]]


@functools.cache
def _scikit_learn() -> Any:
    return sklearn.datasets.load_digits()
