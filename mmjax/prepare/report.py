"""Report of all findings: counts and examples in report.json, one line per finding in findings.jsonl."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
from typing import Any

from mmjax.files import write_atomically, write_json
from mmjax.modalities.names import similar_names
from mmjax.prepare.decide import Decisions, effective_drops
from mmjax.prepare.examined import Examined, Finding

_EXAMPLES = 5
_MANY = 0.05
"""Fraction of rows dropped, not counting exact copies, above which the user is warned."""


def make(examined: Examined, decisions: Decisions) -> dict[str, Any]:
    """Builds the content of report.json.

    Returns:
      {"rows", "kept", "dropped", "splits", "left_out", "notes", "warning", "not_judged", "findings": {name: {"rows",
      "dropped", "drops", "examples"}}}. "left_out" is {column or other content of the source: reason}, "notes" are
      sentences about columns, "warning" is not empty if many rows are dropped.
      In a finding, "rows" counts the affected rows, "dropped" the rows of which it is the first finding that drops
      the row, and "drops" is True if it drops rows.
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
        "left_out": dict(examined.job.layout.left_out),
        "notes": _spelling_notes(examined) + _kind_notes(examined, decisions),
        "warning": _warning(examined, decisions),
        "findings": {
            name: {
                "rows": len({finding.row for finding in findings}),
                "dropped": dropped_counts[name],
                "drops": drops[name],
                "examples": [_line(examined, finding) for finding in findings[:_EXAMPLES]],
            }
            for name, findings in sorted(by_name.items(), key=lambda item: (not drops[item[0]], item[0]))
        },
        # For these checks, rows without a finding may be unjudged rather than clean.
        "not_judged": examined.not_judged,
    }


def _spelling_notes(examined: Examined) -> list[str]:
    """Reports names that differ only in case or blanks, in targets, categories, groups and splits."""
    layout = examined.job.layout
    names: dict[str, list[str | None]] = {}
    for column in layout.columns:
        kind = examined.job.kinds[column.name]
        for measure, values in examined.categories[column.name].items():
            where = f"{column.name}/{measure.rpartition('/')[2]}" if kind.multi_column else column.name
            if kind.has_classes:
                lists = (kind.class_names(value) for value in values if value is not None)
                values = [name for several in lists for name in several]
            names[where] = values
    names |= {layout.group: examined.groups} if layout.group else {}
    names |= {layout.split: examined.splits} if layout.split else {}
    notes = []
    for where, values in names.items():
        for spellings in similar_names(values):
            counts = ", ".join(f"{name!r} ({count:,} rows)" for name, count in spellings.items())
            notes.append(f"{where}: {counts} differ only in case or blanks")
    return notes


def _kind_notes(examined: Examined, decisions: Decisions) -> list[str]:
    """Collects the remarks of `Kind.notes` about all columns."""
    return [
        f"{column.name}: {note}"
        for column in examined.job.layout.columns
        for note in examined.job.kinds[column.name].notes(decisions.summary[column.name])
    ]


def _warning(examined: Examined, decisions: Decisions) -> str:
    """Explains why many rows, not counting exact copies, are dropped and how to keep them; "" if few are."""
    copies = {finding.row for finding in decisions.findings if finding.check == "duplicate" and finding.exact}
    reasons = collections.Counter(
        reason for row, reason in decisions.dropped.items() if reason != "duplicate" or row not in copies
    )
    count, rows = sum(reasons.values()), examined.job.num_rows
    if count <= _MANY * rows:
        return ""
    counts = ", ".join(f"{number:,} {reason}" for reason, number in reasons.most_common())
    return (
        f"{count:,} of {rows:,} rows ({count / rows:.0%}) go for other reasons than exact copies: {counts}; "
        f"look at card.html, and keep them with --keep={','.join(reason for reason, _ in reasons.most_common())}"
    )


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
