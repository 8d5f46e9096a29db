"""Checks of single values: unreadable files, faults reported by the column kinds, and rows without inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from mmjax.prepare.examined import Examined, Finding


def unreadable(examined: Examined) -> Iterator[Finding]:
    """Finds inputs that cannot be decoded."""
    targets = {column.name for column in examined.job.targets}
    yield from (f for f in examined.findings if f.check == "unreadable" and f.column not in targets)


def unreadable_target(examined: Examined) -> Iterator[Finding]:
    """Finds targets that cannot be decoded. They count as missing, and the rows are kept."""
    for column in examined.job.targets:
        for finding in examined.findings:
            if finding.check == "unreadable" and finding.column == column.name:
                yield dataclasses.replace(finding, check="unreadable_target")


def faulty(examined: Examined) -> Iterator[Finding]:
    """Yields the faults that the column kinds report."""
    yield from (finding for finding in examined.findings if finding.check != "unreadable")


def absent(examined: Examined) -> Iterator[Finding]:
    """Finds rows without any input."""
    inputs = [examined.present[column.name] for column in examined.job.inputs]
    for row in range(examined.job.num_rows):
        if examined.alive[row] and not any(present[row] for present in inputs):
            yield Finding(row, "absent", "all inputs are missing")
