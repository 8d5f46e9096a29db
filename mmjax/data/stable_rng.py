"""Random draws for dataset preparation that are stable across NumPy versions.

Every draw uses `Generator.random()` on `Philox(key)`, the only method whose stream NumPy guarantees across versions.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T", bound=Hashable)


def stable_rng(key: bytes) -> np.random.Generator:
    """Returns a generator seeded by the first 16 bytes of `key`."""
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key.ljust(16, b"\0")[:16], "<u8").astype(np.uint64)))


def shuffled(items: Sequence[T], rng: np.random.Generator) -> list[T]:
    """Returns the items in random order."""
    return [items[index] for index in np.argsort(rng.random(len(items)), kind="stable")]


def shuffled_cycle(items: Sequence[T], rng: np.random.Generator) -> Iterator[T]:
    """Yields the items in endless rounds, each item once per round, so that their counts differ by at most 1.

    Every round is reshuffled. With a fixed order, two cycles whose lengths share a divisor would pair each item with
    the same few items of the other cycle.
    """
    while True:
        yield from shuffled(items, rng)


def choose(options: Sequence[T], uniform: float) -> T:
    """Maps a uniform draw in [0, 1) to one of the options."""
    return options[int(uniform * len(options))]


def interpolate(bounds: tuple[float, float], uniform: float) -> float:
    """Maps a uniform draw in [0, 1) linearly to the interval `bounds`."""
    return bounds[0] + (bounds[1] - bounds[0]) * float(uniform)
