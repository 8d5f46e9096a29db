"""Report of all findings: counts and examples in report.json, one line per finding in findings.jsonl."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
from typing import Any

from mmjax.files import write_atomically, write_json
from mmjax.prepare.decide import Decisions, effective_drops
from mmjax.prepare.examined import Examined, Finding

_EXAMPLES = 5


def make(examined: Examined, decisions: Decisions) -> dict[str, Any]:
    """Builds the content of report.json.

    Returns:
      {"rows", "kept", "dropped", "splits", "not_judged", "notes": {column: remarks}, "findings": {name: {"rows",
      "dropped", "drops", "examples"}}}. In a finding, "rows" counts the affected rows, "dropped" the rows for which it
      is the first finding that drops them, and "drops" is True if it drops rows.
    """
    drops = effective_drops(examined.job.config)
    by_name: dict[str, list[Finding]] = collections.defaultdict(list)
    for finding in decisions.findings:
        by_name[finding.check].append(finding)
    dropped_counts = collections.Counter(decisions.dropped.values())
    return {
        "rows": examined.job.num_rows,
        "kept": int(examined.alive.sum()),
        "dropped": len(decisions.dropped),
        "splits": {split: len(rows) for split, rows in decisions.splits.items()},
        "findings": {
            name: {
                "rows": len({finding.row for finding in findings}),
                "dropped": dropped_counts[name],
                "drops": drops[name],
                "examples": [_line(examined, finding) for finding in findings[:_EXAMPLES]],
            }
            for name, findings in sorted(by_name.items(), key=lambda item: (not drops[item[0]], item[0]))
        },
        "notes": {
            column.name: notes
            for column in examined.job.layout.columns
            if (notes := examined.job.kinds[column.name].notes(decisions.summary[column.name]))
        },
        # Without a finding, rows of these checks are unjudged rather than clean.
        "not_judged": examined.not_judged,
    }


def write(folder: pathlib.Path, content: dict[str, Any], examined: Examined, decisions: Decisions) -> None:
    """Writes report.json, and findings.jsonl with one line per finding."""
    write_json(folder / "report.json", content)
    lines = [json.dumps(_line(examined, finding, decisions), ensure_ascii=False) for finding in decisions.findings]
    write_atomically(folder / "findings.jsonl", "".join(line + "\n" for line in lines))


def _line(examined: Examined, finding: Finding, decisions: Decisions | None = None) -> dict[str, Any]:
    """Converts a finding to JSON, with row keys in place of indices."""
    line = {key: value for key, value in dataclasses.asdict(finding).items() if value not in ("", None)}
    line["key"] = examined.keys[line.pop("row")]
    if finding.other is not None:
        line["other"] = examined.keys[finding.other]
    if decisions is not None:
        line["dropped"] = decisions.dropped.get(finding.row) == finding.check
    return line
