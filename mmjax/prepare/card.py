"""Data card: a self-contained HTML page with statistics, samples and findings of a prepared dataset."""

from __future__ import annotations

import hashlib
import html
import pathlib
from typing import Any

import numpy as np

from mmjax.prepare import statistics
from mmjax.prepare.decide import Decisions
from mmjax.prepare.examined import Examined, Finding
from mmjax.prepare.kinds import KINDS, Unreadable

_SAMPLES_PER_SPLIT = 8
_EXAMPLES_PER_FINDING = 6
_MAX_CLASSES = 30


def make(examined: Examined, decisions: Decisions, report: dict[str, Any], name: str) -> str:
    """Renders the data card as HTML. The same rows give the same page.

    Args:
      examined: measurements of all rows.
      decisions: decisions about all rows.
      report: content of report.json.
      name: title of the page.
    """
    import jinja2

    folder = pathlib.Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = _format_number
    split_statistics = statistics.statistics(examined, decisions.splits)
    samples = {
        split: [_render_row(examined, decisions, row) for row in _sample(examined, rows)]
        for split, rows in decisions.splits.items()
    }
    return environment.get_template("card.html.jinja").render(
        name=name,
        report=report,
        source=examined.job.config.source,
        columns=[{"name": c.name, "kind": c.kind, "target": c.target, "sources": " + ".join(c.sources)}
                 for c in examined.job.layout.columns],
        statistics=split_statistics,
        labels=_class_tables(split_statistics),
        measures=_measures(examined, decisions),
        samples=samples,
        findings={check: _examples(examined, decisions, check) for check in report["findings"]},
    )  # fmt: skip


def _sample(examined: Examined, rows: np.ndarray) -> list[int]:
    """Draws a few rows, reproducibly, by the hash of their keys."""
    shuffled = sorted(rows, key=lambda row: hashlib.sha256(examined.keys[row].encode()).digest())
    return sorted(int(row) for row in shuffled[:_SAMPLES_PER_SPLIT])


def _render_row(examined: Examined, decisions: Decisions, index: int) -> dict[str, Any]:
    """Renders a row: {"key", "shown": {column: HTML}}."""
    from markupsafe import Markup

    row, shown = examined.job.row(index), {}
    for column in examined.job.layout.columns:
        try:
            raw = examined.job.decode(row, column)
            kind = examined.job.kinds[column.name]
            text = "<i>absent</i>" if raw is None else kind.show(kind.rendered(raw, decisions.summary[column.name]))
        except Unreadable as error:
            text = f"<i>unreadable: {html.escape(str(error))}</i>"
        # `Kind.show` escapes its values.
        shown[column.name] = Markup(text)
    return {"key": examined.keys[index], "shown": shown}


def _examples(examined: Examined, decisions: Decisions, check: str) -> list[dict[str, Any]]:
    """Renders a few evenly spaced findings of a check."""
    findings = [finding for finding in decisions.findings if finding.check == check]
    step = max(1, len(findings) // _EXAMPLES_PER_FINDING)
    return [_render_finding(examined, decisions, finding) for finding in findings[::step][:_EXAMPLES_PER_FINDING]]


def _render_finding(examined: Examined, decisions: Decisions, finding: Finding) -> dict[str, Any]:
    """Renders a finding with its one or two rows: {"why", "rows"}."""
    rows = [finding.row] if finding.other is None else [finding.row, finding.other]
    return {"why": finding.why, "rows": [_render_row(examined, decisions, row) for row in rows]}


def _class_tables(split_statistics: dict[str, Any]) -> dict[str, dict[str, dict[str, int]]]:
    """Returns {label or categorical measure: {class: {split: examples}}}, limited to the most frequent classes."""
    tables: dict[str, dict[str, dict[str, int]]] = {}
    for split, content in split_statistics.items():
        for column, values in content["columns"].items():
            for name, count in values.get("classes", {}).items():
                tables.setdefault(column, {}).setdefault(name, {})[split] = count
            for measure, counts in values.get("categories", {}).items():
                for name, count in counts.items():
                    tables.setdefault(f"{column}/{measure}", {}).setdefault(name, {})[split] = count
    return {
        column: dict(sorted(table.items(), key=lambda item: -sum(item[1].values()))[:_MAX_CLASSES])
        for column, table in tables.items()
    }


def _measures(examined: Examined, decisions: Decisions) -> list[dict[str, Any]]:
    """Describes each numeric measure over all splits, with a histogram as an SVG path."""
    rows = np.concatenate(list(decisions.splits.values()))
    measures = []
    for column in examined.job.layout.columns:
        for name, values in examined.measures[column.name].items():
            valid = values[rows]
            valid = valid[~np.isnan(valid)]
            if not len(valid) or KINDS[column.kind].has_classes:
                continue
            counts, _ = np.histogram(valid, bins=40)
            heights = 36 * counts / counts.max()
            path = "".join(f"M{4 * index + 2} 38v-{height:.1f}" for index, height in enumerate(heights) if height)
            description = statistics.describe(valid)
            measures.append({"column": column.name, "measure": name, "statistics": description, "histogram": path})
    return measures


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.4g}"
