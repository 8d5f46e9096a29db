"""What was found, in numbers, in examples, and line by line."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
from typing import Any

from mmjax.files import write_atomically, write_json
from mmjax.prepare.decide import Decisions, drops
from mmjax.prepare.examined import Examined, Finding

_EXAMPLES = 5


def make(examined: Examined, decisions: Decisions) -> dict[str, Any]:
    """{"rows", "kept", "dropped", "splits", "not_judged", "findings": {name: {"rows", "dropped", "drops", "examples"}}}

    "rows" of a finding are those that it concerns, "dropped" those that go because of it first.
    """
    effective = drops(examined.job.config)
    by_name: dict[str, list[Finding]] = collections.defaultdict(list)
    for finding in decisions.findings:
        by_name[finding.check].append(finding)
    reasons = collections.Counter(decisions.dropped.values())
    return {
        "rows": examined.job.rows,
        "kept": int(examined.alive.sum()),
        "dropped": len(decisions.dropped),
        "splits": {split: len(rows) for split, rows in decisions.splits.items()},
        "findings": {
            name: {
                "rows": len({finding.row for finding in findings}),
                "dropped": reasons[name],
                "drops": effective[name],
                "examples": [_line(examined, finding) for finding in findings[:_EXAMPLES]],
            }
            for name, findings in sorted(by_name.items(), key=lambda item: (not effective[item[0]], item[0]))
        },
        # What a check could not look for, and why: no finding is no proof then.
        "not_judged": examined.not_judged,
    }


def write(folder: pathlib.Path, made: dict[str, Any], examined: Examined, decisions: Decisions) -> None:
    """Writes report.json, and findings.jsonl with a line for each finding."""
    write_json(folder / "report.json", made)
    lines = [json.dumps(_line(examined, finding, decisions), ensure_ascii=False) for finding in decisions.findings]
    write_atomically(folder / "findings.jsonl", "".join(line + "\n" for line in lines))


def _line(examined: Examined, finding: Finding, decisions: Decisions | None = None) -> dict[str, Any]:
    facts = {key: value for key, value in dataclasses.asdict(finding).items() if value not in ("", None)}
    facts["key"] = examined.keys[facts.pop("row")]
    if finding.other is not None:
        facts["other"] = examined.keys[finding.other]
    if decisions is not None:
        facts["dropped"] = decisions.dropped.get(finding.row) == finding.check
    return facts
