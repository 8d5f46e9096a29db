"""Makes the records of `digits`: which picture, which voice and which sentence go together, and TFDS writes them.

This file imports TFDS and scikit-learn; only preparation imports it. Every draw comes from `Philox(key)` through
`random()` alone, as NumPy promises the stream of no other method to stay the same from version to version.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import sklearn.datasets
import tensorflow_datasets as tfds

from mmjax.data import arithmetic, digits, speech

# Left out of espeak-ng's 104 variants: whispers, robots and monsters; Klatt synthesisers and others that differ from a
# kept one by hardly anything measurable; and those whose words are too long, end abruptly or are poorly understood.
VOICES = {
    "train": (  # noqa: SIM905 a list of 42 strings is harder to read
        "Alex Andy Denis Gene Henrique Lee Mario Michael Reed adam announcer antonio aunty boris croak ed edward "
        "f2 f3 f5 gustave iven john linda m1 m2 m5 m6 m7 m8 marcelo max michel mike2 norbert paul pedro quincy "
        "rob robert sandro shelby"
    ).split(),
    "validation": ["Jacky", "f1", "grandma", "ian", "m3", "victor"],
    "test": ["Annie", "Mike", "Nguyen", "david", "f4", "grandpa", "m4", "pablo", "steph", "travis"],
}
VOICES["accents"] = VOICES["test"]

_FAMILIAR = ["en", "en-us", "en-us-nyc"]
ACCENTS = {
    "train": _FAMILIAR,
    "validation": _FAMILIAR,
    "test": _FAMILIAR,
    "accents": ["en-gb-x-rp", "en-029", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd"],
}

# How often each (a, b, operation), or each digit, occurs.
COPIES = {
    "arithmetic": {"train": 14, "validation": 1, "test": 2, "accents": 2},
    "matched": {"train": 400, "validation": 50, "test": 100, "accents": 100},
}

_PICTURES = {"train": slice(0, 120), "validation": slice(120, 140), "test": slice(140, None)}
_PICTURES["accents"] = _PICTURES["test"]

_SPEEDS = (130, 210)
_PITCHES = (25, 75)
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
    copies = COPIES[task][split]
    if task == "arithmetic":
        latents = [(q.a, q.b, q.text, _targets(q)) for q in arithmetic.balanced_questions(copies)]
    else:
        latents = [
            (digit, digit, arithmetic.digit_sentence(digit, copy + digit), {"digit": str(digit)})
            for copy in range(copies)
            for digit in range(10)
        ]
    draws = _draws(task, split).random((len(latents), 6))
    pictures = {digit: _pictures(split, digit) for digit in range(10)}
    taken = dict.fromkeys(range(10), 0)
    result = []
    for (seen, heard, text, targets), draw in zip(latents, draws, strict=True):
        # The pictures of a digit take turns, so that none is much more frequent than another.
        picture = pictures[seen][taken[seen] % len(pictures[seen])]
        taken[seen] += 1
        voice = f"{_pick(ACCENTS[split], draw[0])}+{_pick(VOICES[split], draw[1])}"
        speed, pitch = _between(_SPEEDS, draw[2]), _between(_PITCHES, draw[3])
        utterance = speech.Utterance(arithmetic.WORDS[heard], voice, round(speed), round(pitch))
        pause = round(_LONGEST_PAUSE * speech.RATE * draw[4])
        result.append(Plan(picture, utterance, text, targets, pause, _between(_GAINS, draw[5])))
    return result


def _targets(question: arithmetic.Question) -> dict[str, str]:
    return {
        "answer": question.answer,
        "image_digit": str(question.a),
        "audio_digit": str(question.b),
        "operation": question.operation,
    }


class DigitsBuilder(tfds.core.GeneratorBasedBuilder):
    """Handwritten digits, spoken digits, and sentences about them; see `mmjax.data.digits`."""

    name = "digits"
    VERSION = tfds.core.Version(digits.VERSION)
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
        """The number of examples of all splits."""
        per_copy = 600 if self.builder_config.name == "arithmetic" else 10
        return per_copy * sum(COPIES[self.builder_config.name].values())

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "key": tfds.features.Text(),
            # Tensors and not an Image or Audio feature: TFDS needs TensorFlow to write those. Raw bytes, since numbers
            # in a tf.train.Example take 64 bits each.
            "image": tfds.features.Tensor(shape=(8, 8), dtype=np.uint8, encoding="bytes"),
            "audio": tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding="bytes"),
            "text": tfds.features.Text(),
            "voice": tfds.features.Text(),
            "picture": tfds.features.Scalar(dtype=np.int32),
        }
        for name, spec in digits.TARGETS[self.builder_config.name].items():
            features[name] = tfds.features.ClassLabel(names=list(spec.classes))
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.builder_config.description,
            features=tfds.features.FeaturesDict(features),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, download_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        plans = {split: plan(self.builder_config.name, split) for split in digits.SPLITS}
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
            features = {
                "key": key,
                "image": np.rint(images[example.picture] * (255 / 16)).astype(np.uint8),
                "audio": np.rint(audio).astype(np.int16),
                "text": example.text,
                "voice": example.utterance.voice,
                "picture": example.picture,
                **example.targets,
            }
            yield key, features


def _draws(*names: Any) -> np.random.Generator:
    """Random numbers that belong to the names and to nothing else."""
    key = list(":".join(map(str, names)).encode().ljust(16, b"\0")[:16])
    return np.random.Generator(np.random.Philox(key=np.frombuffer(bytes(key), "<u8").astype(np.uint64)))


def _pictures(split: str, digit: int) -> list[int]:
    """The numbers of a split's pictures of one digit, in a fixed random order."""
    numbers = np.flatnonzero(_scikit_learn().target == digit)
    order = np.argsort(_draws("pictures", digit).random(len(numbers)), kind="stable")
    return [int(number) for number in numbers[order]][_PICTURES[split]]


@functools.cache
def _scikit_learn() -> Any:
    return sklearn.datasets.load_digits()


def _pick(options: list[str], draw: float) -> str:
    return options[int(draw * len(options))]


def _between(bounds: tuple[float, float], draw: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * float(draw)
