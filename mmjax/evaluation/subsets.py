"""Subsets of the inputs and their names."""

from __future__ import annotations

import itertools
from collections.abc import Collection


def subset_name(names: Collection[str]) -> str:
    """Name of a subset, for example "audio+image"; sorted, so that it is unique."""
    return "+".join(sorted(names))


def subsets(names: Collection[str]) -> list[tuple[str, ...]]:
    """All non-empty subsets, smallest first."""
    names = sorted(names)
    return [subset for size in range(1, len(names) + 1) for subset in itertools.combinations(names, size)]
