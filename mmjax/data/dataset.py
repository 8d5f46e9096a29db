"""Interface of datasets: `Dataset`, `Source`, `Record`."""

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
    """One stored example.

    Attributes:
      inputs: {input name: raw data of its modality}, None for a missing input.
      targets: {target name: value with the shape and dtype of its TargetSpec}, None for a missing target.
    """

    inputs: Mapping[str, Any]
    targets: Mapping[str, Any]


class Source(Protocol):
    """Random access to the records of one split. Must be picklable: worker processes read it too."""

    def __len__(self) -> int:
        """Returns the number of records."""

    def __getitem__(self, index: int) -> Record:
        """Returns the record at `index`."""


class Dataset(Protocol):
    """A dataset, built from its nested `Config`. Construction is cheap; `prepare` and `source` do the work."""

    def __init__(self, config: Any): ...

    @property
    def splits(self) -> tuple[str, ...]:
        """Split names, "train" first."""

    @property
    def inputs(self) -> Mapping[str, str]:
        """{input name: modality, a key of `mmjax.modalities.MODALITIES`}."""

    @property
    def targets(self) -> Mapping[str, TargetSpec]:
        """{target name: its shape, dtype and classes}."""

    def prepare(self) -> pathlib.Path:
        """Writes the files that `source` reads, unless they exist, and returns their folder."""

    def source(self, split: str) -> Source:
        """Returns the records of a split, prepared first if necessary. Raises UserError if the split is unknown."""

    def ceilings(self, split: str) -> dict[str, dict[str, float]]:
        """{target: {input subset such as "audio+image": upper bound of accuracy}}; {} without a known bound."""
        return {}


def check_split(split: str, splits: Collection[str], where: str = "split") -> None:
    """Raises UserError at `where` unless `split` is one of `splits`."""
    if split not in splits:
        raise UserError(where, f"unknown split {split!r}", nearest(split, splits))


def sample_dropped(rates: Mapping[str, float], present: Collection[str], rng: np.random.Generator) -> set[str]:
    """Samples the inputs of an example to drop (modality dropout), never all of them.

    Each input is dropped independently with its rate. If that drops every present input, one of them, drawn uniformly,
    is kept; this lowers the effective rates by at most the product of the rates of the present inputs.

    Args:
      rates: {input name: drop probability}. Other inputs are kept.
      present: names of the inputs that the example has.
      rng: consumes one draw per rate, in alphabetical order, plus one, whatever the outcome.
    """
    names = sorted(rates)
    uniforms = rng.random(len(names) + 1)
    drop = {name for name, uniform in zip(names, uniforms, strict=False) if uniform < rates[name] and name in present}
    if present and drop == set(present):
        drop.discard(sorted(present)[int(uniforms[-1] * len(present))])
    return drop
