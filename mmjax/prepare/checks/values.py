"""What is wrong with a value by itself, as its kind judges it."""

from __future__ import annotations

from collections.abc import Iterator

from mmjax.prepare.examined import Examined, Finding


def unreadable(examined: Examined) -> Iterator[Finding]:
    """Values that cannot be decoded. A target that cannot be read is one that the row lacks."""
    targets = {column.name for column in examined.job.targets}
    yield from (found for found in examined.findings if found.check == "unreadable" and found.column not in targets)


def faulty(examined: Examined) -> Iterator[Finding]:
    """What the kinds call faults."""
    yield from (found for found in examined.findings if found.check != "unreadable")


def absent(examined: Examined) -> Iterator[Finding]:
    """Rows that have none of the inputs."""
    inputs = [examined.present[column.name] for column in examined.job.inputs]
    for row in range(examined.job.num_rows):
        if examined.alive[row] and not any(present[row] for present in inputs):
            yield Finding(row, "absent", "it has none of the inputs")
