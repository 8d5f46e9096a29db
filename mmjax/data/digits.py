"""Digits that are seen, heard and asked about: the dataset of the first example, ready in seconds and never downloaded.

The pictures are scikit-learn's 8 x 8 handwritten digits, the sounds are spoken by espeak-ng in some sixty voices, and
the sentences are ours. In the task `arithmetic` every input tells only a part, so that all three are needed; in the
task `matched` they tell the same thing, for contrastive training and for studying absence.

Splits: `train`; `validation` and `test`, whose pictures and voices are not in train (nor in each other); and `accents`,
with the pictures and voices of test in accents of English that are not in train.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pathlib
from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np

from mmjax.config import Rate
from mmjax.data import arithmetic, cache, speech
from mmjax.data.dataset import Record, check_split, dropped
from mmjax.errors import UserError, nearest
from mmjax.tokens import TargetSpec

# Raised whenever the records change, so that nobody goes on with old ones.
VERSION = "1.0.0"
SPLITS = ("train", "validation", "test", "accents")
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


class Digits:
    """The digits dataset, one of two tasks.

    Raw inputs: image uint8 [8, 8], light on black; audio (int16 [n], 16,000 Hz), at most 1 s; text, at most 31 bytes.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Which digits.

        Attributes:
          task: "arithmetic" (targets answer, image_digit, audio_digit, operation) or "matched" (target digit).
          cache: where to keep the prepared records; by default $MMJAX_CACHE, or else ~/.cache/mmjax.
          missing: {input or target: the fraction of training examples that lack it}, always the same examples; no
            example loses all of its inputs. The other splits stay whole.
        """

        task: Literal["arithmetic", "matched"] = "arithmetic"
        cache: str = ""
        missing: dict[str, Rate] = dataclasses.field(default_factory=dict)

    def __init__(self, config: Config):
        self.config = config
        self._folder = cache.cache_folder(config.cache) / "digits" / config.task / VERSION
        known = [*self.inputs, *self.targets]
        for name in config.missing:
            if name not in known:
                raise UserError(f"data.missing.{name}", f"there is no input or target {name!r}", nearest(name, known))

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS

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
        """Makes the records with espeak-ng and TFDS, unless they are in the cache, and returns their folder.

        Raises:
          UserError: if espeakng-loader is not installed, or the cache cannot be written.
        """
        if not self._folder.exists():
            # Before anything is written.
            speech.check_installed()
        return cache.prepare_once(self._folder, self._write, cache.records_checksum)

    def source(self, split: str) -> DigitsSource:
        """The records of a split."""
        check_split(split, self.splits)
        missing = self.config.missing if split == "train" else {}
        return DigitsSource(self.prepare(), split, tuple(self.targets), missing)

    def ceilings(self, split: str) -> dict[str, dict[str, float]]:
        """The best accuracy that each subset of the inputs allows, where no example lacks any.

        Every split has each combination equally often, so that the ceilings of all are the same.
        """
        check_split(split, self.splits)
        if self.config.task == "matched":
            return {"digit": arithmetic.ceilings(arithmetic.matched_outcomes())}
        return {"answer": arithmetic.ceilings(arithmetic.arithmetic_outcomes())}

    def _write(self, folder: pathlib.Path) -> pathlib.Path:
        # TFDS and scikit-learn take seconds to import; who reads prepared records does without the second.
        import rich.console
        import rich.progress
        import tensorflow_datasets as tfds

        from mmjax.data import digits_builder

        console = rich.console.Console(stderr=True)
        progress = rich.progress.Progress(console=console, transient=True, disable=not console.is_terminal)
        tfds.disable_progress_bar()
        # TFDS prints to standard output, which belongs to the command's result.
        with progress, contextlib.redirect_stdout(io.StringIO()):
            builder = digits_builder.DigitsBuilder(
                data_dir=str(folder), config=self.config.task, file_format="array_record"
            )
            bar = progress.add_task(f"Preparing digits/{self.config.task}", total=2 * builder.size)
            builder.advance = lambda count: progress.advance(bar, count)
            builder.download_and_prepare()
        return pathlib.Path(builder.data_dir)


class DigitsSource:
    """The prepared records of one split.

    Args:
      folder: what `Digits.prepare` returned.
      split: the split's name.
      targets: the names of the targets.
      missing: {input or target: fraction of examples that lack it}.
    """

    def __init__(self, folder: pathlib.Path, split: str, targets: Collection[str], missing: Mapping[str, float]):
        self._folder, self._split = folder, split
        self._targets = targets
        self._missing_inputs = {name: rate for name, rate in missing.items() if name in INPUTS}
        self._missing_targets = {name: rate for name, rate in missing.items() if name not in INPUTS}
        self._opened: Any = None

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes open the files themselves.
        return {**self.__dict__, "_opened": None}

    def __len__(self) -> int:
        return len(self._files())

    def __getitem__(self, index: int) -> Record:
        stored = self.stored(index)
        inputs = {
            "image": stored["image"],
            "audio": (stored["audio"], 16_000),
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
        """Everything that is stored of a record: its key, voice and the number of its picture too."""
        return self._files()[index]

    def _files(self):
        if self._opened is None:
            import tensorflow_datasets as tfds

            self._opened = tfds.builder_from_directory(str(self._folder)).as_data_source(self._split)
        return self._opened
