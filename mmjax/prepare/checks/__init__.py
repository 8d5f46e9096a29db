"""Checks: what may be wrong with a row. A new one is a function in a file here, and one line in the table.

They run in the order of the table, and each sees which rows those before it dropped. The faults of one value by itself
stand with its kind, in `mmjax.prepare.kinds`, and are dropped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from mmjax.prepare.checks import duplicates, labels, pairs, values
from mmjax.prepare.examined import Examined, Finding


@dataclasses.dataclass(frozen=True)
class Check:
    """A check.

    Attributes:
      function: yields what it found.
      drops: whether the rows are left out, unless the user says otherwise.
    """

    function: Callable[[Examined], Iterable[Finding]]
    drops: bool = True


CHECKS: dict[str, Check] = {
    "unreadable": Check(values.unreadable),
    "faulty": Check(values.faulty),
    "absent": Check(values.absent),
    "duplicate": Check(duplicates.duplicate),
    "leakage": Check(duplicates.leakage),
    "shared": Check(duplicates.shared, drops=False),
    "misaligned": Check(pairs.misaligned, drops=False),
    "label_error": Check(labels.label_error, drops=False),
}
