"""What all datasets share that pair a picture of a digit with a spoken digit and a sentence: tasks, records, writing.

In the task `arithmetic` every input tells only a part, so that all three are needed; in the task `matched` they tell
the same thing, for contrastive training and for studying absence.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np

from mmjax.config import Formerly, Rate
from mmjax.data.dataset import Record, check_split, dropped
from mmjax.datasets import cache
from mmjax.datasets.digits import arithmetic, speech
from mmjax.datasets.records import Records
from mmjax.errors import UserError, nearest
from mmjax.tokens import TargetSpec

VERSIONS = {"digits": "1.0.0", "avmnist": "1.0.1"}
"""Versions of the stored records; raised whenever they change."""

INPUTS = {"image": "image", "audio": "audio", "text": "text"}

_DIGIT = TargetSpec((), "int32", tuple(str(digit) for digit in range(10)))
TARGETS: dict[str, dict[str, TargetSpec]] = {
    "arithmetic": {
        "answer": TargetSpec((), "int32", arithmetic.ANSWERS),
        "image_digit": _DIGIT,
        "audio_digit": _DIGIT,
        "operation": TargetSpec((), "int32", tuple(arithmetic.OPERATIONS)),
    },
    "matched": {"digit": _DIGIT},
}

USES_IN_A_COPY = {"arithmetic": 60, "matched": 1}
"""How often `latents(task, 1)` has each digit in an image; in the audio as often."""


class Latents(NamedTuple):
    """What an example tells: the digit that is seen, the one that is heard, the sentence, {target: class's name}."""

    seen: int
    heard: int
    text: str
    targets: dict[str, str]


def latents(task: str, copies: int) -> list[Latents]:
    """Every (a, b, operation) or every digit `copies` times, so that a split has no sampling error in them."""
    if task == "arithmetic":
        return [Latents(q.a, q.b, q.text, _targets(q)) for q in arithmetic.balanced_questions(copies)]
    return [
        Latents(digit, digit, arithmetic.digit_sentence(digit, copy + digit), {"digit": str(digit)})
        for copy in range(copies)
        for digit in range(10)
    ]


def _targets(question: arithmetic.Question) -> dict[str, str]:
    return {
        "answer": question.answer,
        "image_digit": str(question.a),
        "audio_digit": str(question.b),
        "operation": question.operation,
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedConfig:
    """Which digits.

    Attributes:
      task: "arithmetic" (targets answer, image_digit, audio_digit, operation) or "matched" (target digit).
      cache: where to keep the prepared records; by default $MMJAX_CACHE, or else ~/.cache/mmjax.
      missing_fraction: {input or target: the fraction of training examples that lack it}, always the same examples;
        no example loses all of its inputs. The other splits stay whole.
    """

    task: Literal["arithmetic", "matched"] = "arithmetic"
    cache: str = ""
    missing_fraction: Annotated[dict[str, Rate], Formerly("missing")] = dataclasses.field(default_factory=dict)


class PairedDigits:
    """Base of the datasets of digits. A subclass says where its records lie and writes them, in `prepare`."""

    name: ClassVar[str]
    all_splits: ClassVar[tuple[str, ...]]
    Config: ClassVar[type] = PairedConfig

    def __init__(self, config: Any):
        self.config = config
        known = [*self.inputs, *self.targets]
        for name in config.missing_fraction:
            if name not in known:
                raise UserError(
                    f"data.missing_fraction.{name}", f"there is no input or target {name!r}", nearest(name, known)
                )

    @property
    def splits(self) -> tuple[str, ...]:
        return self.all_splits

    @property
    def inputs(self) -> Mapping[str, str]:
        return INPUTS

    @property
    def targets(self) -> Mapping[str, TargetSpec]:
        return TARGETS[self.config.task]

    @property
    def checksum(self) -> str:
        """sha256 of the prepared records."""
        return cache.checksum(self.prepare())

    def prepare(self) -> pathlib.Path:
        """Makes the records unless they are in the cache, and returns their folder."""
        raise NotImplementedError

    def source(self, split: str) -> PairedSource:
        """The records of a split."""
        check_split(split, self.splits)
        missing_fraction = self.config.missing_fraction if split == "train" else {}
        return PairedSource(self.prepare(), split, tuple(self.targets), missing_fraction)

    def ceilings(self, split: str) -> dict[str, dict[str, float]]:
        """The best accuracy that each subset of the inputs allows, where no example lacks any.

        Every split has each combination equally often, so that the ceilings of all are the same.
        """
        check_split(split, self.splits)
        if self.config.task == "matched":
            return {"digit": arithmetic.ceilings(arithmetic.matched_outcomes())}
        return {"answer": arithmetic.ceilings(arithmetic.arithmetic_outcomes())}

    def _write(self, make_builder: Callable[[], Any]) -> pathlib.Path:
        """Lets a TFDS builder write its records, and returns their folder.

        Args:
          make_builder: makes the builder, which has `size`, the work to do, and calls `advance` with what is done.
        """
        # TFDS takes seconds to import; who has a cache that is ready does without what only preparation needs.
        import rich.console
        import rich.progress
        import tensorflow_datasets as tfds

        console = rich.console.Console(stderr=True)
        progress = rich.progress.Progress(console=console, transient=True, disable=not console.is_terminal)
        tfds.disable_progress_bar()
        # TFDS prints to standard output, which belongs to the command's result.
        with progress, contextlib.redirect_stdout(io.StringIO()):
            builder = make_builder()
            bar = progress.add_task(f"Preparing {self.name}/{self.config.task}", total=builder.size)
            builder.advance = lambda count: progress.advance(bar, count)
            builder.download_and_prepare()
        return pathlib.Path(builder.data_dir)


class PairedSource:
    """The prepared records of one split.

    Args:
      folder: what `prepare` returned.
      split: the split's name.
      targets: the names of the targets.
      missing_fraction: {input or target: fraction of examples that lack it}.
    """

    def __init__(
        self, folder: pathlib.Path, split: str, targets: Collection[str], missing_fraction: Mapping[str, float]
    ):
        self._folder, self._split = folder, split
        self._targets = targets
        self._missing_inputs = {name: rate for name, rate in missing_fraction.items() if name in INPUTS}
        self._missing_targets = {name: rate for name, rate in missing_fraction.items() if name not in INPUTS}
        self._opened: Any = None

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes open the files themselves.
        return {**self.__dict__, "_opened": None}

    def __len__(self) -> int:
        return len(self._files())

    def __getitem__(self, index: int) -> Record:
        return self._record(index, self.stored(index))

    def _record(self, index: int, stored: Mapping[str, Any]) -> Record:
        inputs = {
            "image": stored["image"],
            # Recordings come in rates of their own; what espeak-ng says has always this one, which is not stored.
            "audio": (stored["audio"], int(stored.get("rate", speech.RATE))),
            "text": stored["text"].decode(),
        }
        targets = {name: stored[name] for name in self._targets}
        if self._missing_inputs or self._missing_targets:
            draws = np.random.Generator(np.random.Philox(key=[index, 0]))
            gone = dropped(self._missing_inputs, inputs, draws)
            gone |= {name for name in sorted(self._missing_targets) if draws.random() < self._missing_targets[name]}
            inputs = {name: None if name in gone else raw for name, raw in inputs.items()}
            targets = {name: None if name in gone else value for name, value in targets.items()}
        return Record(inputs, targets)

    def stored(self, index: int) -> dict[str, Any]:
        """Everything that is stored of a record: its key, who speaks and the number of its picture too."""
        return self._files()[index]

    def _files(self):
        if self._opened is None:
            self._opened = Records(self._folder, self._split)
        return self._opened


def features(tfds: Any, task: str, image_shape: tuple[int, int]) -> dict[str, Any]:
    """What TFDS is to store of an example, with images uint8 of one shape [H, W]; `tfds` is the module."""
    stored = {
        "key": tfds.features.Text(),
        # Tensors and not an Image or Audio feature: TFDS needs TensorFlow to write those. Raw bytes, since numbers in a
        # tf.train.Example take 64 bits each.
        "image": tfds.features.Tensor(shape=image_shape, dtype=np.uint8, encoding="bytes"),
        "audio": tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding="bytes"),
        "text": tfds.features.Text(),
        "picture": tfds.features.Scalar(dtype=np.int32),
    }
    return stored | {name: tfds.features.ClassLabel(names=list(spec.classes)) for name, spec in TARGETS[task].items()}
