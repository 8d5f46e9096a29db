"""Base class of the digit datasets, which pair an image, a spoken digit and a sentence: tasks, records, writing.

In the task `arithmetic` the inputs are complementary, so all three are needed; in the task `matched` they are
redundant, for contrastive training and studies of missing inputs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pathlib
from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np

from mmjax.config import FilePath, Formerly, Rate
from mmjax.data.dataset import Dataset, Record, check_split, sample_dropped
from mmjax.datasets import cache
from mmjax.datasets.digits import arithmetic, speech
from mmjax.datasets.records import Records
from mmjax.errors import UserError, nearest
from mmjax.tokens import TargetSpec

VERSIONS = {"digits": "1.0.0", "avmnist": "1.0.1"}
"""Versions of the stored records, incremented on every change."""

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

USES_PER_COPY = {"arithmetic": 60, "matched": 1}
"""Occurrences of each digit in `latents(task, 1)`, the same for image and audio."""


class Latents(NamedTuple):
    """Latents of an example: image digit, audio digit, sentence, and {target: class name}."""

    image_digit: int
    audio_digit: int
    text: str
    targets: dict[str, str]


def latents(task: str, copies: int) -> list[Latents]:
    """Returns every (a, b, operation), or every digit, `copies` times: splits are exactly balanced."""
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
    """Options of the digit datasets.

    Attributes:
      task: "arithmetic" (targets answer, image_digit, audio_digit, operation) or "matched" (target digit).
      cache: folder of the prepared records; by default $MMJAX_CACHE, or else ~/.cache/mmjax.
      missing_fraction: {input or target: fraction of training examples without it}, the same examples in every epoch.
        No example loses all of its inputs. Other splits are complete.
    """

    task: Literal["arithmetic", "matched"] = "arithmetic"
    cache: Annotated[str, FilePath()] = ""
    missing_fraction: Annotated[dict[str, Rate], Formerly("missing")] = dataclasses.field(default_factory=dict)


class PairedDigits(Dataset):
    """Base class of the digit datasets.

    Attributes:
      name: name of the dataset, and of its folder in the cache.
      all_splits: split names.
      needs_speech: True if preparation synthesises speech.
    """

    name: ClassVar[str]
    all_splits: ClassVar[tuple[str, ...]]
    needs_speech: bool = True
    Config: ClassVar[type] = PairedConfig

    def __init__(self, config: Any):
        self.config = config
        known = [*self.inputs, *self.targets]
        for name in config.missing_fraction:
            if name not in known:
                raise UserError(
                    f"data.missing_fraction.{name}", f"unknown input or target {name!r}", nearest(name, known)
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
        """SHA-256 of the prepared records."""
        return cache.checksum(self.prepare())

    @property
    def folder(self) -> pathlib.Path:
        """Folder of the prepared records."""
        raise NotImplementedError

    def make_builder(self, folder: pathlib.Path) -> Any:
        """Returns a TFDS builder that writes to `folder`, with the attribute `size` and the callback `advance`."""
        raise NotImplementedError

    def prepare(self) -> pathlib.Path:
        """Writes the records with TFDS, unless they are cached, and returns their folder.

        Raises:
          UserError: if espeakng-loader is needed and not installed, the raw files are invalid, or the cache cannot be
            written.
        """
        if self.needs_speech and not self.folder.exists():
            # Fail before anything is written.
            speech.check_installed()
        return cache.prepare_once(self.folder, self._write, cache.records_checksum)

    def source(self, split: str) -> PairedSource:
        """Returns the records of a split, prepared first if necessary."""
        check_split(split, self.splits)
        missing_fraction = self.config.missing_fraction if split == "train" else {}
        return PairedSource(self.prepare(), split, tuple(self.targets), missing_fraction)

    def ceilings(self, split: str) -> dict[str, dict[str, float]]:
        """Returns the Bayes-optimal accuracy for each subset of the inputs, without missing inputs.

        All splits have the same ceilings: each contains every combination equally often.
        """
        check_split(split, self.splits)
        if self.config.task == "matched":
            return {"digit": arithmetic.ceilings(arithmetic.matched_outcomes())}
        return {"answer": arithmetic.ceilings(arithmetic.arithmetic_outcomes())}

    def _write(self, folder: pathlib.Path) -> pathlib.Path:
        """Writes the records below `folder` with a progress bar, and returns their own folder."""
        # Imported here because only preparation needs these modules, and TFDS takes seconds to import.
        import rich.console
        import rich.progress
        import tensorflow_datasets as tfds

        console = rich.console.Console(stderr=True)
        progress = rich.progress.Progress(console=console, transient=True, disable=not console.is_terminal)
        tfds.disable_progress_bar()
        # Discard TFDS prints: standard output is reserved for the result of the command.
        with progress, contextlib.redirect_stdout(io.StringIO()):
            builder = self.make_builder(folder)
            bar = progress.add_task(f"Preparing {self.name}/{self.config.task}", total=builder.size)
            builder.advance = lambda count: progress.advance(bar, count)
            builder.download_and_prepare()
        return pathlib.Path(builder.data_dir)


class PairedSource:
    """Prepared records of one split.

    Args:
      folder: folder of the records.
      split: split name.
      targets: target names.
      missing_fraction: {input or target: fraction of examples without it}.
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
        # Open files are not picklable; worker processes reopen them.
        return {**self.__dict__, "_opened": None}

    def __len__(self) -> int:
        return len(self._files())

    def __getitem__(self, index: int) -> Record:
        return self._record(index, self.stored(index))

    def _record(self, index: int, stored: Mapping[str, Any]) -> Record:
        inputs = {
            "image": stored["image"],
            # Recordings store their sample rate; synthetic speech has a fixed rate, which is not stored.
            "audio": (stored["audio"], int(stored.get("rate", speech.RATE))),
            "text": stored["text"].decode(),
        }
        targets = {name: stored[name] for name in self._targets}
        if self._missing_inputs or self._missing_targets:
            rng = np.random.Generator(np.random.Philox(key=[index, 0]))
            missing = sample_dropped(self._missing_inputs, inputs, rng)
            missing |= {name for name in sorted(self._missing_targets) if rng.random() < self._missing_targets[name]}
            inputs = {name: None if name in missing else raw for name, raw in inputs.items()}
            targets = {name: None if name in missing else value for name, value in targets.items()}
        return Record(inputs, targets)

    def stored(self, index: int) -> dict[str, Any]:
        """Returns all stored fields of a record, including its key, speaker or voice, and image index."""
        return self._files()[index]

    def _files(self):
        if self._opened is None:
            self._opened = Records(self._folder, self._split)
        return self._opened


def features(tfds: Any, task: str, image_shape: tuple[int, int]) -> dict[str, Any]:
    """Returns the common TFDS features of a record with images [H, W]; `tfds` is the slow-to-import module."""
    stored = {
        "key": tfds.features.Text(),
        # Tensor features, because TFDS needs TensorFlow to write Image and Audio features. Raw bytes, because integers
        # in a tf.train.Example take up to 64 bits each.
        "image": tfds.features.Tensor(shape=image_shape, dtype=np.uint8, encoding="bytes"),
        "audio": tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding="bytes"),
        "text": tfds.features.Text(),
        "picture": tfds.features.Scalar(dtype=np.int32),
    }
    return stored | {name: tfds.features.ClassLabel(names=list(spec.classes)) for name, spec in TARGETS[task].items()}
