"""Rows that are in a source twice, and rows of one split that are in another too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mmjax.prepare.examined import Examined, Finding, connected_components, rows_by_group
from mmjax.prepare.splits import sort_splits

# Of a chain of near duplicates so many rows may stay, as no copies of each other, before the others stay too.
_TURNS = 8


def duplicate(examined: Examined) -> Iterator[Finding]:
    """Rows whose inputs are all near duplicates of those of one other row in the same split.

    That with the most pixels and samples is kept, and of equals the first. An input that two rows share while another
    differs, such as a picture with two captions, makes them no duplicates: see `shared`.
    """
    if all(examined.job.kinds[column.name].duplicates_expected for column in examined.job.inputs):
        return
    labels = {c.name: examined.classes(c.name) for c in examined.job.targets if c.kind == "label"}
    groups: list[list[int]] = []
    for several in _whole(examined):
        by_split: dict[str | None, list[int]] = {}
        for row in several:
            by_split.setdefault(examined.splits[row], []).append(row)
        groups += [sorted(rows, key=lambda row: (-examined.quality(row), row)) for rows in by_split.values()]
    for turn in range(1, _TURNS + 1):
        # A row of a chain of near duplicates goes if it is one of the row that stays, and not only of its neighbours.
        groups = [rows for rows in groups if len(rows) > 1]
        pairs = np.asarray([(rows[0], row) for rows in groups for row in rows[1:]], np.int64).reshape(-1, 2)
        copies = set(pairs[_copies(examined, turn, pairs), 1].tolist())
        for kept, *rows in groups:
            for row in sorted(copies.intersection(rows)):
                why = f"it is {examined.keys[kept]!r} once more" + _otherwise(labels, row, kept)
                yield Finding(row, "duplicate", why, other=kept)
        groups = [[row for row in rows if row not in copies] for _, *rows in groups]


def shared(examined: Examined) -> Iterator[Finding]:
    """Inputs that are near duplicates though their rows are none, of kinds in which chance does not make them."""
    for column in examined.job.inputs:
        kind = examined.job.kinds[column.name]
        if kind.distinctive or kind.duplicates_expected and len(examined.job.inputs) == 1:
            alive = _alive(examined, column.name)
            for first, *others in rows_by_group(examined.near_duplicate_groups(column.name)[alive], alive):
                for row in others:
                    why = f"its {column.name} is that of {examined.keys[first]!r}"
                    yield Finding(row, "shared", why, column.name, first)


def leakage(examined: Examined) -> Iterator[Finding]:
    """Rows of one split that share an input or a group with a later one, where the source says the splits.

    What is in training and in test is dropped from training, since a test that loses rows is another test.
    """
    if all(split is None for split in examined.splits):
        return
    order = {split: place for place, split in enumerate(sort_splits(split or "" for split in set(examined.splits)))}
    reasons: list[tuple[str, list[Any]]]
    reasons = [(f"its {name} is that of", groups) for name, groups in _distinctive(examined)]
    if examined.job.layout.group:
        reasons.append((f"its {examined.job.layout.group} is that of", examined.groups))
    told = set()
    for reason, groups in reasons:
        alive = [int(row) for row in np.flatnonzero(examined.alive) if groups[row] is not None]
        for rows in rows_by_group([groups[row] for row in alive], alive):
            last = max(rows, key=lambda row: (order[examined.splits[row] or ""], -row))
            for row in rows:
                if examined.splits[row] != examined.splits[last] and row not in told:
                    told.add(row)
                    why = f"{reason} {examined.keys[last]!r} in {examined.splits[last]}"
                    yield Finding(row, "leakage", why, other=last)


def together(examined: Examined) -> np.ndarray:
    """int64 [rows]: rows with one number must be in one split: they share a group, or an input that is telling."""
    pairs: list[tuple[int, int]] = []
    found: list[list[Any]] = [*(groups for _, groups in _distinctive(examined)), examined.groups]
    for groups in found:
        first: dict[Any, int] = {}
        for row in np.flatnonzero(examined.alive):
            if groups[row] is not None:
                pairs.append((first.setdefault(groups[row], int(row)), int(row)))
    return connected_components(examined.job.num_rows, pairs)


def _distinctive(examined: Examined) -> list[tuple[str, list[int | None]]]:
    """(column, group of each row) of the inputs in which near duplicates are no chance."""
    inputs = examined.job.inputs
    # Two equal texts are suspicious where there is nothing else.
    columns = [c for c in inputs if examined.job.kinds[c.name].distinctive] if len(inputs) > 1 else inputs
    found = []
    for column in columns:
        similarity, present = examined.near_duplicate_groups(column.name), examined.present[column.name]
        found.append(
            (column.name, [int(similarity[row]) if present[row] else None for row in range(examined.job.num_rows)])
        )
    return found


def _whole(examined: Examined) -> Iterator[list[int]]:
    rows = np.flatnonzero(examined.alive)
    inputs = [column.name for column in examined.job.inputs]
    # Absent like absent: a row that lacks its text is no copy of one that has it.
    groups = np.stack(
        [np.where(examined.present[name], examined.near_duplicate_groups(name), -1)[rows] for name in inputs], axis=1
    )
    signatures = [tuple(row) for row in groups.tolist()]
    yield from rows_by_group(signatures, rows.tolist())


def _copies(examined: Examined, turn: int, pairs: np.ndarray) -> np.ndarray:
    """bool [n]: of pairs of rows that have the same inputs, whether all of these are near duplicates."""
    found = np.ones(len(pairs), bool)
    for column in examined.job.inputs:
        there = examined.present[column.name][pairs[:, 0]]
        found[there] &= examined.are_near_duplicates(column.name, turn, pairs[there])
    return found


def _otherwise(labels: dict[str, list[str | None]], row: int, kept: int) -> str:
    """Which labels of a copy are not those of the row that stays: one of the two is wrong."""
    other = [
        f", but its {name} is {names[row]!r}, there {names[kept]!r}"
        for name, names in labels.items()
        if names[row] is not None and names[kept] is not None and names[row] != names[kept]
    ]
    return "".join(other)


def _alive(examined: Examined, name: str) -> np.ndarray:
    return np.flatnonzero(examined.alive & examined.present[name])
