"""Shares rows out to parts: groups stay whole, every part has the same mix of labels, and nothing depends on luck."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np


def ordered(splits: Iterable[str]) -> tuple[str, ...]:
    """The names of splits: training first, then validation, then all others by name."""
    rank = {"train": 0, "validation": 1}
    return tuple(sorted(splits, key=lambda split: (rank.get(split, 2), split)))


def parts(
    shares: Mapping[str, float], groups: Sequence[int] | np.ndarray, labels: Sequence[str | None], seed: str
) -> np.ndarray:
    """Chooses a part for each row.

    Groups are dealt out one by one, the largest first and equals in a random order: each goes where, of its labels and
    in all, most is missing. So a part differs from its share of a label by at most the last group that it got.

    Args:
      shares: {part: how much of all rows it should have}, in any unit.
      groups: of each row; rows of one group come into one part.
      labels: of each row, None for none.
      seed: any text.

    Returns:
      int64 [rows], the number of each row's part in the order of `shares`.
    """
    counts: dict[int, collections.Counter] = collections.defaultdict(collections.Counter)
    totals: collections.Counter = collections.Counter()
    for group, label in zip(groups, labels, strict=True):
        counts[int(group)][label] += 1
        totals[label] += 1
    wanted = np.asarray(list(shares.values())) / sum(shares.values())
    missing = {label: wanted * total for label, total in totals.items()}
    room = wanted * len(labels)
    chosen: dict[int, int] = {}
    # Groups of one label one after the other, so that what is missing of a label is shared out as it was meant.
    order = sorted(counts, key=lambda group: (-sum(counts[group].values()), _draw(seed, group)))
    for group in order:
        of_labels = sum(
            number / totals[label] * missing[label] / totals[label] for label, number in counts[group].items()
        )
        # What is missing of its labels decides; of parts that miss as much, the one that has most room of all.
        part = int(np.lexsort((-room / len(labels), -np.round(of_labels, 12)))[0])
        chosen[group] = part
        size = sum(counts[group].values())
        room[part] -= size
        for label, number in counts[group].items():
            missing[label][part] -= number
    _fill(chosen, counts, wanted)
    return np.asarray([chosen[int(group)] for group in groups], np.int64)


def _fill(chosen: dict[int, int], counts: Mapping[int, collections.Counter], wanted: np.ndarray) -> None:
    """Gives a part that got nothing the smallest group of the part that has most, while that one has others."""
    for part in range(len(wanted)):
        if wanted[part] and part not in chosen.values():
            rows: collections.Counter = collections.Counter()
            groups: dict[int, list[int]] = collections.defaultdict(list)
            for group, other in chosen.items():
                rows[other] += sum(counts[group].values())
                groups[other].append(group)
            rich = [other for other in rows if len(groups[other]) > 1]
            if rich:
                most = max(rich, key=lambda other: (rows[other], -other))
                chosen[min(groups[most], key=lambda group: (sum(counts[group].values()), group))] = part


def _draw(seed: str, group: int) -> bytes:
    return hashlib.sha256(f"{seed}:{group}".encode()).digest()
