"""What every dataset offers, whatever it holds and however it is stored."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import numpy as np

from mmjax.errors import UserError, nearest
from mmjax.tokens import TargetSpec


@dataclasses.dataclass(frozen=True)
class Record:
    """One example as it is stored.

    Attributes:
      inputs: {name: raw data of the input's modality}, None where the example lacks it.
      targets: {name: value of the shape and dtype of its TargetSpec}, None where the example lacks it.
    """

    inputs: Mapping[str, Any]
    targets: Mapping[str, Any]


class Source(Protocol):
    """The records of one split, by their number. It can be pickled, as worker processes read it too."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


class Dataset(Protocol):
    """A dataset, made from its nested `Config`. Making one is quick; `prepare` and `source` do the work."""

    def __init__(self, config: Any): ...

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits; "train" is the first."""

    @property
    def inputs(self) -> Mapping[str, str]:
        """{name of an input: its kind, a key of `mmjax.modalities.MODALITIES`}."""

    @property
    def targets(self) -> Mapping[str, TargetSpec]:
        """{name of a target: its shape, dtype and classes}."""

    def prepare(self) -> pathlib.Path:
        """Makes the files that `source` reads, unless they are there, and returns their folder."""

    def source(self, split: str) -> Source:
        """The records of a split, prepared first if need be. Raises UserError if there is no such split."""

    def ceilings(self, split: str) -> dict[str, dict[str, float]]:
        """{target: {subset of inputs, as "audio+image": the best accuracy it allows}}, {} where nobody knows."""


def check_split(split: str, splits: Collection[str], where: str = "split") -> None:
    """Raises UserError at `where` unless `split` is one of `splits`."""
    if split not in splits:
        raise UserError(where, f"there is no split {split!r}", nearest(split, splits))


def dropped(rates: Mapping[str, float], present: Collection[str], draws: np.random.Generator) -> set[str]:
    """Draws which of the present inputs of an example to drop, but never all of them.

    Each input is dropped with its rate, independently. Where that would leave none, one of the present inputs, drawn
    uniformly, stays; this lowers the rates in effect, by a product of all of them.

    Args:
      rates: {name of an input: probability}. Inputs that are not named stay.
      present: the names of the inputs that the example has.
      draws: makes one number for each rate, in alphabetical order, and one more, whatever the outcome.
    """
    names = sorted(rates)
    numbers = draws.random(len(names) + 1)
    drop = {name for name, number in zip(names, numbers, strict=False) if number < rates[name] and name in present}
    if present and drop == set(present):
        drop.discard(sorted(present)[int(numbers[-1] * len(present))])
    return drop
