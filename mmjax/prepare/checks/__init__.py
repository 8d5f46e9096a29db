"""Dataset checks of `mmjax prepare`. A new check is one function in a file here, and one line in `CHECKS`.

Checks run in the order of the table; each sees only the rows that earlier checks have not dropped. Faults of single
values are defined by the column kinds in `mmjax.prepare.kinds`. A fault drops the row, unless it is one of the kind's
`value_faults`: these discard only the value, and a row without any input is then dropped as "absent".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from mmjax.prepare.checks import duplicates, labels, pairs, values
from mmjax.prepare.examined import Examined, Finding


@dataclasses.dataclass(frozen=True)
class Check:
    """A check and its default action.

    Attributes:
      function: yields the findings.
      drops: drop the rows found, unless the user keeps them (`--keep`).
    """

    function: Callable[[Examined], Iterable[Finding]]
    drops: bool = True


CHECKS: dict[str, Check] = {
    "unreadable": Check(values.unreadable),
    "unreadable_target": Check(values.unreadable_target, drops=False),
    "faulty": Check(values.faulty),
    "absent": Check(values.absent),
    "conflict": Check(duplicates.conflict, drops=False),
    "duplicate": Check(duplicates.duplicate),
    "leakage": Check(duplicates.leakage),
    "shared": Check(duplicates.shared, drops=False),
    "misaligned": Check(pairs.misaligned, drops=False),
    "label_error": Check(labels.label_error, drops=False),
}
