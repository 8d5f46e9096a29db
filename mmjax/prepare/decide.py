"""Decides which rows are dropped, and the split and fold of the others."""

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
from mmjax.prepare.splits import assign_parts, sort_splits


@dataclasses.dataclass(frozen=True)
class Decisions:
    """Decisions about all rows.

    Attributes:
      findings: all findings, in the order of the checks.
      dropped: {row: name of the first finding that drops it}.
      splits: {split: row indices int64, in the order of the source}; "train" first.
      folds: int64 [rows], fold index; -1 for dropped rows or without folds.
      summary: {column: {"classes": names} or {measure: {"smallest", "largest"}}}, over the kept rows.
    """

    findings: list[Finding]
    dropped: dict[int, str]
    splits: dict[str, np.ndarray]
    folds: np.ndarray
    summary: dict[str, Any]


def default_drops() -> dict[str, bool]:
    """Returns `{finding: True if it drops a row by default}` for all checks and faults."""
    faults = {fault: fault not in kind.value_faults for kind in KINDS.values() for fault in kind.fault_names}
    return {name: check.drops for name, check in CHECKS.items() if name != "faulty"} | faults


def effective_drops(config: PrepareConfig) -> dict[str, bool]:
    """Applies `--keep` and `--drop` to `default_drops`.

    Raises:
      UserError: if an option names an unknown finding.
    """
    defaults = default_drops()
    for where, names in (("--keep", config.keep), ("--drop", config.drop)):
        for name in names:
            if name not in defaults:
                raise UserError(where, f"unknown finding {name!r}", nearest(name, defaults))
    return defaults | dict.fromkeys(config.keep, False) | dict.fromkeys(config.drop, True)


def decide(examined: Examined) -> Decisions:
    """Runs the checks in order, then splits the kept rows. Clears `examined.alive` for dropped rows.

    Raises:
      UserError: if no row is kept, or the source's split names are invalid.
    """
    config = examined.job.config
    drops = effective_drops(config)
    findings: list[Finding] = []
    dropped: dict[int, str] = {}
    for check in CHECKS.values():
        # A check must not see its own drops, so collect its findings first.
        check_findings = list(check.function(examined))
        findings += check_findings
        for finding in check_findings:
            if finding.check in examined.job.lost_faults(finding.column):
                examined.present[finding.column][finding.row] = False
            elif drops[finding.check]:
                dropped.setdefault(finding.row, finding.check)
                examined.alive[finding.row] = False
    if not examined.alive.any():
        most = collections.Counter(dropped.values()).most_common(1)[0][0]
        first = next(finding for finding in findings if finding.check == most)
        example = f"{examined.keys[first.row]!r}: {first.column} {first.why}".replace("  ", " ")
        problem = f"all {len(dropped):,} rows are dropped, most as {most!r}, for example {example}"
        raise UserError("--source", problem, f"inspect them with --dry_run, or keep them with --keep={most}")
    groups = split_groups(examined)
    labels = stratification_labels(examined)
    splits = _split_rows(examined, groups, labels)
    folds = np.full(examined.job.num_rows, -1, np.int64)
    if config.folds:
        rows = np.flatnonzero(examined.alive)
        shares = {str(fold): 1.0 for fold in range(config.folds)}
        folds[rows] = assign_parts(shares, groups[rows], [labels[row] for row in rows], f"{config.seed}:folds")
    return Decisions(findings, dropped, splits, folds, summarise(examined, splits[sort_splits(splits)[0]]))


def stratification_labels(examined: Examined) -> list[str | None]:
    """Returns the labels for stratified splits, one per row; None where missing.

    Raises:
      UserError: if `--stratify` is not a label column.
    """
    config, names = examined.job.config, [c.name for c in examined.job.targets if c.kind == "label"]
    if config.stratify and config.stratify not in names:
        raise UserError("--stratify", f"unknown label {config.stratify!r}", nearest(config.stratify, names))
    name = config.stratify or next(iter(names), "")
    return examined.classes(name) if name else [None] * examined.job.num_rows


def _split_rows(examined: Examined, groups: np.ndarray, labels: list[str | None]) -> dict[str, np.ndarray]:
    """Returns the kept rows of each split, from the split column or else by the shares of `--splits`."""
    config, rows = examined.job.config, np.flatnonzero(examined.alive)
    if examined.job.layout.split:
        names = [examined.splits[row] for row in rows]
        for row, name in zip(rows, names, strict=True):
            if name is None or not name.isidentifier():
                problem = f"the split of {examined.keys[row]!r} is {name!r}"
                raise UserError(f"--split={examined.job.layout.split}", problem, "use names such as train and test")
        return {split: rows[[name == split for name in names]] for split in sort_splits({str(name) for name in names})}
    shares = {name: share for name, share in config.splits.items() if share}
    parts = assign_parts(shares, groups[rows], [labels[row] for row in rows], f"{config.seed}:splits")
    return {name: rows[parts == index] for index, name in enumerate(shares) if (parts == index).any()}


def summarise(examined: Examined, training: np.ndarray) -> dict[str, Any]:
    """Summarises each column: `{column: results of Kind.summarise and Kind.summarise_training}`.

    Args:
      examined: measurements of all rows.
      training: rows of the training split.
    """
    summary: dict[str, Any] = {}
    for column in examined.job.layout.columns:
        rows = np.flatnonzero(examined.alive & examined.present[column.name])
        measures = {name: values[rows] for name, values in examined.measures[column.name].items()}
        categories = {name: [values[row] for row in rows] for name, values in examined.categories[column.name].items()}
        kind = examined.job.kinds[column.name]
        measured = {name: values[training] for name, values in examined.measures[column.name].items()}
        summary[column.name] = kind.summarise(measures, categories) | kind.summarise_training(measured)
    return summary
