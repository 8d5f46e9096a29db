"""Subsets of the modalities, by name."""

from __future__ import annotations

import itertools
from collections.abc import Collection


def subset_name(names: Collection[str]) -> str:
    """The name of a subset, like "audio+image": in alphabetical order, so that each has one name."""
    return "+".join(sorted(names))


def subsets(names: Collection[str]) -> list[tuple[str, ...]]:
    """All subsets but the empty one, the smallest first."""
    names = sorted(names)
    return [subset for size in range(1, len(names) + 1) for subset in itertools.combinations(names, size)]
