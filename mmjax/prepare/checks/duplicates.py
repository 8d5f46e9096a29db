"""Near duplicates within a split, inputs shared by several rows, and leakage between splits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mmjax.prepare.examined import Examined, Finding, connected_components, rows_by_group
from mmjax.prepare.splits import sort_splits

# Maximum number of comparison rounds per chain of near duplicates. Each round keeps one row and drops its
# duplicates; rows that remain after the last round are kept.
_MAX_KEPT = 8


def duplicate(examined: Examined) -> Iterator[Finding]:
    """Finds rows whose inputs are all near duplicates of those of another row in the same split.

    The row with the highest `Examined.quality` is kept; ties go to the first. If some inputs are shared and others
    differ, such as an image with two captions, the rows are not duplicates: see `shared`. Rows whose targets or groups
    differ are not duplicates either: see `conflict`.
    """
    yield from (finding for finding in examined.cached("copies", _copies) if finding.check == "duplicate")


def conflict(examined: Examined) -> Iterator[Finding]:
    """Finds rows whose inputs are near duplicates of those of another row, but whose targets or groups differ.

    One of the two targets may be wrong, or the inputs differ too little for the comparison to distinguish them.
    """
    yield from (finding for finding in examined.cached("copies", _copies) if finding.check == "conflict")


def _copies(examined: Examined) -> list[Finding]:
    """Returns the findings of `duplicate` and `conflict`."""
    if all(examined.job.kinds[column.name].duplicates_expected for column in examined.job.inputs):
        return []
    known = _other_columns(examined)
    copied: list[Finding] = []
    conflicts: dict[int, Finding] = {}
    groups: list[list[int]] = []
    for component in _components(examined):
        by_split: dict[str | None, list[int]] = {}
        for row in component:
            by_split.setdefault(examined.splits[row], []).append(row)
        groups += [sorted(rows, key=lambda row: (-examined.quality(row), row)) for rows in by_split.values()]
    for turn in range(1, _MAX_KEPT + 1):
        # Near duplication is not transitive: drop a row only if it duplicates a kept row, not just another dropped one.
        groups = [rows for rows in groups if len(rows) > 1]
        pairs = np.asarray([(rows[0], row) for rows in groups for row in rows[1:]], np.int64).reshape(-1, 2)
        similar = set(pairs[_near_duplicates(examined, turn, pairs), 1].tolist())
        copies = set()
        for kept, *rows in groups:
            for row in sorted(similar.intersection(rows)):
                exact = _are_equal(examined, row, kept)
                why = f"{'copy' if exact else 'near duplicate'} of {examined.keys[kept]!r}"
                if differences := _differences(known, row, kept):
                    conflicts.setdefault(row, Finding(row, "conflict", why + differences, other=kept))
                else:
                    copies.add(row)
                    copied.append(Finding(row, "duplicate", why, other=kept, exact=exact or None))
        groups = [[row for row in rows if row not in copies] for _, *rows in groups]
    gone = {finding.row for finding in copied}
    return copied + [finding for row, finding in conflicts.items() if row not in gone]


def shared(examined: Examined) -> Iterator[Finding]:
    """Finds near-duplicate inputs in rows that are not duplicates, for kinds that rarely match by chance."""
    for column in examined.job.inputs:
        kind = examined.job.kinds[column.name]
        if kind.distinctive or kind.duplicates_expected and len(examined.job.inputs) == 1:
            alive = np.flatnonzero(examined.alive & examined.present[column.name])
            for first, *others in rows_by_group(examined.near_duplicate_groups(column.name)[alive], alive):
                for row in others:
                    why = f"near duplicate of the {column.name} of {examined.keys[first]!r}"
                    yield Finding(row, "shared", why, column.name, first)


def leakage(examined: Examined) -> Iterator[Finding]:
    """Finds rows that share an input or a group with a row of a later split, if the source defines the splits.

    A row in both training and test is dropped from training: a test split that loses rows is a different benchmark.
    """
    if all(split is None for split in examined.splits):
        return
    rank = {split: index for index, split in enumerate(sort_splits(split or "" for split in set(examined.splits)))}
    groupings: list[tuple[str, list[Any]]] = [*_distinctive(examined)]
    if examined.job.layout.group:
        groupings.append((examined.job.layout.group, examined.groups))
    reported = set()
    for name, groups in groupings:
        alive = [int(row) for row in np.flatnonzero(examined.alive) if groups[row] is not None]
        for rows in rows_by_group([groups[row] for row in alive], alive):
            last = max(rows, key=lambda row: (rank[examined.splits[row] or ""], -row))
            for row in rows:
                if examined.splits[row] != examined.splits[last] and row not in reported:
                    reported.add(row)
                    why = f"shares its {name} with {examined.keys[last]!r} in {examined.splits[last]}"
                    yield Finding(row, "leakage", why, other=last)


def split_groups(examined: Examined) -> np.ndarray:
    """Group ids int64 [rows]. Rows with equal ids, linked by a group or a distinctive input, belong in one split."""
    pairs: list[tuple[int, int]] = []
    groupings: list[list[Any]] = [*(groups for _, groups in _distinctive(examined)), examined.groups]
    for groups in groupings:
        first: dict[Any, int] = {}
        for row in np.flatnonzero(examined.alive):
            if groups[row] is not None:
                pairs.append((first.setdefault(groups[row], int(row)), int(row)))
    return connected_components(examined.job.num_rows, pairs)


def _distinctive(examined: Examined) -> list[tuple[str, list[int | None]]]:
    """Returns (column, near-duplicate group of each row) for the inputs that rarely match by chance."""
    inputs = examined.job.inputs
    # A single input counts even if its kind is not distinctive: equal texts are suspicious if rows have nothing else.
    columns = [c for c in inputs if examined.job.kinds[c.name].distinctive] if len(inputs) > 1 else inputs
    groupings = []
    for column in columns:
        similarity, present = examined.near_duplicate_groups(column.name), examined.present[column.name]
        groups = [int(group) if valid else None for group, valid in zip(similarity, present, strict=True)]
        groupings.append((column.name, groups))
    return groupings


def _components(examined: Examined) -> Iterator[list[int]]:
    """Yields lists of rows whose inputs all share near-duplicate groups. Missing inputs match only missing ones."""
    rows = np.flatnonzero(examined.alive)
    names = [column.name for column in examined.job.inputs]
    groups = [
        np.where(examined.present[name], examined.near_duplicate_groups(name), -1)[rows].tolist() for name in names
    ]
    return rows_by_group(zip(*groups, strict=True), rows.tolist())


def _near_duplicates(examined: Examined, turn: int, pairs: np.ndarray) -> np.ndarray:
    """Mask bool [n] of the pairs whose present inputs are all near duplicates. Both rows must have the same inputs."""
    mask = np.ones(len(pairs), bool)
    for column in examined.job.inputs:
        present = examined.present[column.name][pairs[:, 0]]
        mask[present] &= examined.are_near_duplicates(column.name, turn, pairs[present])
    return mask


def _are_equal(examined: Examined, row: int, other: int) -> bool:
    """Returns True if all present inputs of two rows have equal signatures."""
    names = [column.name for column in examined.job.inputs if examined.present[column.name][row]]
    return all(examined.signature(name, row) == examined.signature(name, other) for name in names)


def _other_columns(examined: Examined) -> dict[str, list[Any]]:
    """Returns {column: value of each row, None where missing} for the targets and the group."""
    columns: dict[str, list[Any]] = {}
    for column in examined.job.targets:
        values: list[Any] | None = examined.categories[column.name].get("class")
        if values is None and (numbers := examined.measures[column.name].get("value")) is not None:
            values = [None if np.isnan(number) else float(number) for number in numbers]
        if values is not None:
            columns[column.name] = values
    if examined.job.layout.group:
        columns[examined.job.layout.group] = examined.groups
    return columns


def _differences(columns: dict[str, list[Any]], row: int, kept: int) -> str:
    """Describes the targets and the group in which two rows differ; "" if they agree in all."""
    return "".join(
        f", but {name} is {values[row]!r} instead of {values[kept]!r}"
        for name, values in columns.items()
        if values[row] is not None and values[kept] is not None and values[row] != values[kept]
    )
