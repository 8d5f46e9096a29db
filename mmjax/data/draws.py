"""Random draws for preparation that no other version of NumPy changes.

Every draw comes from `Philox(key)` through `random()` alone, as NumPy promises the stream of no other method to stay
the same from version to version.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T", bound=Hashable)


def draws(key: bytes) -> np.random.Generator:
    """Random numbers that belong to the first 16 bytes of the key and to nothing else."""
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key.ljust(16, b"\0")[:16], "<u8").astype(np.uint64)))


def shuffled(items: Sequence[T], generator: np.random.Generator) -> list[T]:
    """The items in a random order."""
    return [items[number] for number in np.argsort(generator.random(len(items)), kind="stable")]


def turns(items: Sequence[T], generator: np.random.Generator) -> Iterator[T]:
    """The items for ever, each once a round, so that none is much more frequent than another.

    Each round has an order of its own: with one order for all, an item would meet the same few partners again and
    again wherever the lengths of two such rounds have a common divisor.
    """
    while True:
        yield from shuffled(items, generator)


def pick(options: Sequence[T], draw: float) -> T:
    """The option at `draw`, a number in [0, 1)."""
    return options[int(draw * len(options))]


def between(bounds: tuple[float, float], draw: float) -> float:
    """The number between the bounds at `draw`, a number in [0, 1)."""
    return bounds[0] + (bounds[1] - bounds[0]) * float(draw)
