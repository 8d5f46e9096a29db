"""The data card: one HTML page, without any other file, on which a person sees and hears what was prepared."""

from __future__ import annotations

import hashlib
import html
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from mmjax.prepare import statistics
from mmjax.prepare.decide import Decisions
from mmjax.prepare.examined import Examined, Finding
from mmjax.prepare.kinds import Unreadable

_SAMPLES = 8
_PER_FINDING = 6
_MOST_CLASSES = 30


def make(examined: Examined, decisions: Decisions, report: dict[str, Any], name: str) -> str:
    """The page. The same rows give the same page."""
    import jinja2

    folder = pathlib.Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = _number
    found = statistics.statistics(examined, decisions.splits)
    samples = {
        split: [_row(examined, row) for row in _chosen(examined, rows)] for split, rows in decisions.splits.items()
    }
    return environment.get_template("card.html.jinja").render(
        name=name,
        report=report,
        source=examined.job.config.source,
        columns=[{"name": c.name, "kind": c.kind, "target": c.target, "sources": " + ".join(c.sources)}
                 for c in examined.job.layout.columns],
        statistics=found,
        labels=_labels(found),
        measures=_measures(examined, decisions),
        samples=samples,
        findings={check: _examples(examined, decisions, check) for check in report["findings"]},
    )  # fmt: skip


def _chosen(examined: Examined, rows: np.ndarray) -> list[int]:
    """A few rows, the same each time, as if by chance."""
    drawn = sorted(rows, key=lambda row: hashlib.sha256(examined.keys[row].encode()).digest())
    return sorted(int(row) for row in drawn[:_SAMPLES])


def _row(examined: Examined, number: int, columns: Iterable[str] | None = None) -> dict[str, Any]:
    """{"key", "shown": {column: HTML}}."""
    from markupsafe import Markup

    row, shown = examined.job.row(number), {}
    for column in examined.job.layout.columns:
        if columns is None or column.name in columns:
            try:
                raw = examined.job.decode(row, column)
                text = "<i>absent</i>" if raw is None else examined.job.kinds[column.name].show(raw)
            except Unreadable as error:
                text = f"<i>unreadable: {html.escape(str(error))}</i>"
            # Each kind escapes what it shows.
            shown[column.name] = Markup(text)
    return {"key": examined.keys[number], "shown": shown}


def _examples(examined: Examined, decisions: Decisions, check: str) -> list[dict[str, Any]]:
    findings = [finding for finding in decisions.findings if finding.check == check]
    step = max(1, len(findings) // _PER_FINDING)
    return [_pair(examined, finding) for finding in findings[::step][:_PER_FINDING]]


def _pair(examined: Examined, finding: Finding) -> dict[str, Any]:
    shown = [_row(examined, finding.row)]
    if finding.other is not None:
        shown.append(_row(examined, finding.other))
    return {"why": finding.why, "rows": shown}


def _labels(found: dict[str, Any]) -> dict[str, dict[str, dict[str, int]]]:
    """{label: {class: {split: examples}}}, the commonest classes only."""
    tables: dict[str, dict[str, dict[str, int]]] = {}
    for split, facts in found.items():
        for column, values in facts["columns"].items():
            for name, count in values.get("classes", {}).items():
                tables.setdefault(column, {}).setdefault(name, {})[split] = count
            for measure, counts in values.get("categories", {}).items():
                for name, count in counts.items():
                    tables.setdefault(f"{column}/{measure}", {}).setdefault(name, {})[split] = count
    return {
        column: dict(sorted(table.items(), key=lambda item: -sum(item[1].values()))[:_MOST_CLASSES])
        for column, table in tables.items()
    }


def _measures(examined: Examined, decisions: Decisions) -> list[dict[str, Any]]:
    """For each measure of each column, over all splits: its spread and a histogram as the path of an SVG."""
    rows = np.concatenate(list(decisions.splits.values()))
    made = []
    for column in examined.job.layout.columns:
        for name, values in examined.numbers[column.name].items():
            kept = values[rows]
            kept = kept[~np.isnan(kept)]
            if not len(kept) or column.kind == "label":
                continue
            counts, _ = np.histogram(kept, bins=40)
            heights = 36 * counts / counts.max()
            bars = "".join(f"M{4 * at + 2} 38v-{height:.1f}" for at, height in enumerate(heights) if height)
            made.append({"column": column.name, "measure": name, "spread": statistics.spread(kept), "bars": bars})
    return made


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.4g}"
