"""What preparation asks of a kind of column: to decode, measure, compare, store and show what the user brings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np


class Unreadable(ValueError):
    """A value cannot be decoded; the text says why."""


@dataclasses.dataclass(frozen=True)
class File:
    """The bytes of a file, with its name for messages and for what its suffix tells."""

    name: str
    data: bytes


def name_of(number: float) -> str:
    """A number as the name of a category: whole ones without a point, others with all of their digits."""
    return str(int(number)) if float(number).is_integer() else repr(float(number))


def standard(values: np.ndarray) -> tuple[float, float] | None:
    """Mean and deviation of numbers without NaN, None of none; a constant, which says nothing, has the deviation 1."""
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    mean, deviation = float(values.mean()), float(values.std())
    return mean, deviation if deviation > 1e-9 * abs(mean) else 1.0


def pooled(counts: np.ndarray, means: np.ndarray, deviations: np.ndarray) -> tuple[float, float]:
    """Mean and deviation of all values of several groups, from those of each group and how many values it has.

    Groups without values may hold NaN. As in `standard`, a constant has the deviation 1; no values at all have 0 and 1.
    """
    filled = counts > 0
    counts, means, deviations = counts[filled], means[filled], deviations[filled]
    if not len(counts):
        return 0.0, 1.0
    mean = float(np.average(means, weights=counts))
    deviation = float(np.sqrt(np.average(np.square(deviations) + np.square(means - mean), weights=counts)))
    return mean, deviation if deviation > 1e-9 * abs(mean) else 1.0


class Kind:
    """Base of all kinds. What a kind does not override it cannot do: `measure` nothing, be like nothing, and so on.

    A kind is made from its `Config`, which holds the thresholds of its checks, and its `Reduce`. `decode`, `measure`,
    `signature` and `features` do not depend on thresholds, so that others judge what was measured once.

    Attributes:
      target: whether columns of this kind are what a model answers; the others are what it is given.
      fault_names: what `faults` can find.
      telling: whether two examples that share only this are suspicious. Two captions may well be the same.
      repeats: whether examples may well be equal by design, as repeated measurements are: copies are told, and stay.
      keeps_words: whether the words among what is measured are few, and counted.
      takes_folders: whether a path may be that of a folder; `decode` then gets a tuple of its files.
      tokenized: whether `restore` gives strings, for which a tokenizer can be trained.
      joins: whether several columns of the source make one of this kind; `decode` gets {column: value}.
      suffixes: the suffixes of files of this kind, lower case, with the dot.
    """

    target: ClassVar[bool] = False
    distinctive: ClassVar[bool] = True
    duplicates_expected: ClassVar[bool] = False
    keeps_words: ClassVar[bool] = False
    takes_folders: ClassVar[bool] = False
    tokenized: ClassVar[bool] = False
    multi_column: ClassVar[bool] = False
    fault_names: ClassVar[tuple[str, ...]] = ()
    suffixes: ClassVar[tuple[str, ...]] = ()

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """No options."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Reduce:
        """Nothing can be made smaller."""

    def __init__(self, config: Any = None, reduce: Any = None):
        self.config: Any = self.Config() if config is None else config
        self.reduce: Any = self.Reduce() if reduce is None else reduce

    def is_path(self, value: str) -> bool:
        """Whether a string in a manifest is the path of a file, and not the value itself."""
        return bool(self.suffixes) and not self.target

    def decode(self, value: Any) -> Any:
        """Makes raw data of a `File`, or of a value that stands in a manifest or a record; None where there is nothing.

        Raises:
          Unreadable: if there is something else.
        """
        raise NotImplementedError

    def reduced(self, raw: Any) -> Any:
        """What is kept of raw data: all of it, unless the user has asked for less."""
        return raw

    def measure_whole(self, raw: Any) -> dict[str, float | int | str]:
        """What `measure` would not find in what is left of raw data that was reduced."""
        return {}

    def measure(self, raw: Any) -> dict[str, float | int | str]:
        """Numbers and words that describe raw data; "bytes" is how much a record grows by it."""
        return {}

    def faults(self, measured: Mapping[str, Any]) -> dict[str, str]:
        """{name of a fault: why}, of what `measure` found."""
        return {}

    def quality(self, measured: Mapping[str, Any]) -> float:
        """Of near duplicates, that with the most is kept: pixels, samples."""
        return 0.0

    # Near duplicates.

    def signature(self, raw: Any) -> bytes | None:
        """A small likeness of raw data that `similarity` compares, None where nothing can be said."""
        return None

    def hashes(self, signature: bytes) -> np.ndarray | None:
        """uint64 [n], the same n for all, from which `candidates` finds what may be alike."""
        return None

    def candidates(self, hashes: np.ndarray) -> np.ndarray:
        """int64 [pairs, 2], the rows of `hashes` [rows, n] that may be alike; better too many than too few."""
        return np.zeros((0, 2), np.int64)

    def similarity(self, one: bytes, other: bytes) -> float:
        """How alike two sketches are; near duplicates are those at or above `config.alike`."""
        return 0.0

    # Suspected label errors.

    def features(self, raw: Any) -> np.ndarray | None:
        """float32 [n], the same n for all, from which a simple classifier tells classes apart."""
        return None

    def described(self, numbers: Mapping[str, np.ndarray], words: Mapping[str, list[str | None]]) -> np.ndarray | None:
        """The same for all rows at once, float [rows, n], where it follows from what was measured; see `summarise`."""
        return None

    # Storing. `stored` and `restore` are inverse to each other up to what the kind says that it rounds.

    def feature(self, tfds: Any, summary: Mapping[str, Any]) -> Any:
        """The TFDS feature; `summary` has {"classes"} or the largest and smallest of each number that was measured."""
        raise NotImplementedError

    def stored(self, raw: Any, summary: Mapping[str, Any]) -> Any:
        """What the TFDS feature encodes."""
        raise NotImplementedError

    def placeholder(self, summary: Mapping[str, Any]) -> Any:
        """What stands in a record that lacks this column; `restore` never sees it."""
        raise NotImplementedError

    def restore(self, stored: Any) -> Any:
        """Makes what the modality of this name processes of what TFDS decoded, or read without decoding."""
        return stored

    # Of all rows together.

    def summarise(self, numbers: Mapping[str, np.ndarray], words: Mapping[str, list[str | None]]) -> dict[str, Any]:
        """What storing has to know of all rows: {measure: {"smallest", "largest"}}, or what the kind makes of it.

        Args:
          numbers: {measure: float [rows], NaN where there is none}.
          words: {measure: [rows] of words, None where there is none}.
        """
        measured = {name: values[~np.isnan(values)] for name, values in numbers.items()}
        return {
            name: {"smallest": float(values.min()), "largest": float(values.max())}
            for name, values in measured.items()
            if len(values)
        }

    def dataset_options(self, summary: Mapping[str, Any], numbers: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Options of the modality of this name that the data decides; `numbers` are those of the training split."""
        return {}

    # The data card.

    def show(self, raw: Any) -> str:
        """HTML in which a person can see or hear raw data."""
        raise NotImplementedError
