"""Decides which rows stay, in which split and in which shard, from what was found about all of them."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import numpy as np

from mmjax.errors import UserError, nearest
from mmjax.prepare.checks import CHECKS
from mmjax.prepare.checks.duplicates import split_groups
from mmjax.prepare.examined import Examined, Finding
from mmjax.prepare.kinds import KINDS
from mmjax.prepare.options import PrepareConfig
from mmjax.prepare.splits import ordered as ordered_splits
from mmjax.prepare.splits import parts


@dataclasses.dataclass(frozen=True)
class Decisions:
    """What is to be written.

    Attributes:
      findings: everything that was found, in the order in which the checks ran.
      dropped: {row: the name of the first finding that drops it}.
      splits: {split: int64 numbers of its rows, in the order of the source}; "train" first.
      folds: int64 [rows], the part of cross-validation, -1 for rows that are dropped or where there are none.
      summary: {column: {"classes": names} or {measure: {"smallest", "largest"}}}, of the rows that stay.
    """

    findings: list[Finding]
    dropped: dict[int, str]
    splits: dict[str, np.ndarray]
    folds: np.ndarray
    summary: dict[str, Any]


def known_findings() -> dict[str, bool]:
    """{name of everything that can be found: whether it drops a row}."""
    faults = {fault: True for kind in KINDS.values() for fault in kind.fault_names}
    return {name: check.drops for name, check in CHECKS.items() if name != "faulty"} | faults


def drops(config: PrepareConfig) -> dict[str, bool]:
    """The same as the user wants it. Raises UserError where the options name what there is not."""
    known = known_findings()
    for where, names in (("--keep", config.keep), ("--drop", config.drop)):
        for name in names:
            if name not in known:
                raise UserError(where, f"there is no finding {name!r}", nearest(name, known))
    return known | dict.fromkeys(config.keep, False) | dict.fromkeys(config.drop, True)


def decide(examined: Examined) -> Decisions:
    """Runs the checks one after the other, and shares out what they leave.

    Raises:
      UserError: if nothing is left, or the splits that the source names are not names.
    """
    config = examined.job.config
    effective = drops(config)
    findings: list[Finding] = []
    dropped: dict[int, str] = {}
    for check in CHECKS.values():
        found = list(check.function(examined))
        findings += found
        for finding in found:
            if effective[finding.check]:
                dropped.setdefault(finding.row, finding.check)
                examined.alive[finding.row] = False
    if not examined.alive.any():
        most = collections.Counter(dropped.values()).most_common(1)[0][0]
        first = next(finding for finding in findings if finding.check == most)
        example = f"{examined.keys[first.row]!r}: {first.column} {first.why}".replace("  ", " ")
        why = f"all {len(dropped):,} rows are dropped, most of them as {most!r}, such as {example}"
        raise UserError("--source", why, f"look at `--dry_run`, or keep them with --keep={most}")
    groups = split_groups(examined)
    labels = stratification(examined)
    splits = _splits(examined, groups, labels)
    folds = np.full(examined.job.rows, -1, np.int64)
    if config.folds:
        rows = np.flatnonzero(examined.alive)
        shares = {str(fold): 1.0 for fold in range(config.folds)}
        folds[rows] = parts(shares, groups[rows], [labels[row] for row in rows], f"{config.seed}:folds")
    return Decisions(findings, dropped, splits, folds, summarise(examined))


def stratification(examined: Examined) -> list[str | None]:
    """The label of each row that splits are balanced by."""
    config, names = examined.job.config, [c.name for c in examined.job.targets if c.kind == "label"]
    if config.stratify and config.stratify not in names:
        raise UserError("--stratify", f"there is no label {config.stratify!r}", nearest(config.stratify, names))
    name = config.stratify or next(iter(names), "")
    return examined.classes(name) if name else [None] * examined.job.rows


def _splits(examined: Examined, groups: np.ndarray, labels: list[str | None]) -> dict[str, np.ndarray]:
    config, rows = examined.job.config, np.flatnonzero(examined.alive)
    if examined.job.layout.split:
        names = [examined.splits[row] for row in rows]
        for row, name in zip(rows, names, strict=True):
            if name is None or not name.isidentifier():
                problem = f"the split of {examined.keys[row]!r} is {name!r}"
                raise UserError(f"--split={examined.job.layout.split}", problem, "give names like train and test")
        return {
            name: rows[[other == name for other in names]] for name in ordered_splits({str(name) for name in names})
        }
    shares = {name: share for name, share in config.splits.items() if share}
    chosen = parts(shares, groups[rows], [labels[row] for row in rows], f"{config.seed}:splits")
    return {name: rows[chosen == place] for place, name in enumerate(shares) if (chosen == place).any()}


def summarise(examined: Examined) -> dict[str, Any]:
    """What storing a column has to know of all its values that stay."""
    summary: dict[str, Any] = {}
    for column in examined.job.layout.columns:
        rows = np.flatnonzero(examined.alive & examined.present[column.name])
        numbers = {name: values[rows] for name, values in examined.numbers[column.name].items()}
        words = {name: [values[row] for row in rows] for name, values in examined.words[column.name].items()}
        summary[column.name] = examined.job.kinds[column.name].summarise(numbers, words)
    return summary
