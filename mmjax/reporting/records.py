"""Recorded results of experiments: statistics over seeds, verdicts and Markdown tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

BEGIN_MARK, END_MARK = "<!-- recorded result: begin -->", "<!-- recorded result: end -->"
"""Markers in README.md around the tables that `mmjax reproduce --record` writes."""


def summarize(values: Sequence[float]) -> dict[str, Any]:
    """Returns mean, sample standard deviation ("deviation", None for a single value), minimum and maximum."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "deviation": std, "smallest": min(values), "largest": max(values)}


def judge(mean: float, ceiling: float, examples: int, within: float) -> str:
    """Returns a verdict on a mean accuracy over seeds: "as expected", "ABOVE by ..." or "SHORT by ...".

    An accuracy more than two binomial standard errors above the ceiling indicates leakage or a wrong evaluation. All
    seeds share the evaluation examples, so the number of seeds does not reduce the standard error.

    Args:
      mean: mean accuracy over seeds.
      ceiling: best possible accuracy.
      examples: number of evaluation examples.
      within: tolerance below the ceiling.
    """
    error = math.sqrt(ceiling * (1 - ceiling) / examples)
    if mean > ceiling + 2 * error:
        return f"ABOVE by {100 * (mean - ceiling):.1f} points"
    if mean < ceiling - within:
        return f"SHORT by {100 * (ceiling - mean):.1f} points"
    return "as expected"


def results_markdown(results: Mapping[str, Any], shown: Mapping[str, Sequence[str]], subset_metric: str) -> str:
    """Formats the README.md tables of an experiment without arms.

    Args:
      results: content of results.json.
      shown: {split: metrics} of the first table.
      subset_metric: description of the metric in the table of input subsets, like "`task/accuracy` on test".
    """
    seeds = list(results["seeds"])
    rows = []
    for split, names in shown.items():
        for name in names:
            values = [f"{results['seeds'][seed][split][name]:.4f}" for seed in seeds]
            rows.append([split, f"`{name}`", _mean(results["metrics"][split][name]), *values])
    lines = _table(["split", "metric", "mean ± std", *(f"seed {seed}" for seed in seeds)], rows)
    if results["subsets"]:
        lines += ["", f"{subset_metric} by input subset, with the ceiling of each subset:", ""]
        rows = [
            [subset.replace("+", " + "), _mean(row), f"{row['smallest']:.4f} – {row['largest']:.4f}"]
            + [f"{row['ceiling']:.4f}", row["verdict"]]
            for subset, row in results["subsets"].items()
        ]
        lines += _table(["inputs", "mean ± std", "min – max", "ceiling", "verdict"], rows)
    machine = results["machine"]
    sizes = ", ".join(f"{count:,} in {split}" for split, count in results["examples"].items())
    lines += [
        "",
        "![Left: training curves of each seed; right: each input subset with its ceiling](plot.png)",
        "",
        f"{results['parameters']:,} parameters; {results['seconds']['mean']:.0f} s per seed, including evaluation, on "
        f"{machine['devices']} ({machine['kind']}, {machine['cores']} cores).",
        f"Examples: {sizes}. std: sample standard deviation over {len(seeds)} seed(s).",
        f"Versions: {_versions(results)}.",
        "",
    ]
    return "\n".join(lines)


def arms_markdown(
    arms: Mapping[str, Mapping[str, Mapping[str, Any]]],
    shown: Mapping[str, Sequence[tuple[str, str]]],
    subsets: Mapping[str, tuple[str, str]],
) -> str:
    """Formats the README.md tables of an experiment that compares arms on folds.

    Args:
      arms: `arms` of results.json, {arm: {fold: summary over seeds}}.
      shown: {arm: [(split, metric)]} of the first table, whose rows are grouped by metric.
      subsets: {arm: (split, metric)} of arms with a table of input subsets.
    """
    folds = list(next(iter(arms.values())))
    rows = []
    for (split, metric), names in group_by_metric(shown).items():
        for arm in names:
            means = {fold: summary["metrics"][split][metric] for fold, summary in arms[arm].items()}
            row = [split, f"`{metric}`", arm, _mean(pool_folds(arms[arm], split, metric))]
            if len(folds) > 1:
                worst = min(means, key=lambda fold: means[fold]["mean"])
                row += [f"{worst} {means[worst]['mean']:.4f}", *map(_mean, means.values())]
            else:
                (only,) = means.values()
                row.append(f"{only['smallest']:.4f} – {only['largest']:.4f}")
            rows.append(row)
    last = ["worst fold", *folds] if len(folds) > 1 else ["min – max"]
    lines = _table(["split", "metric", "arm", "mean ± std", *last], rows)
    for arm, (split, metric) in subsets.items():
        lines += ["", f"{arm}: `{metric}` on {split} by input subset, with the ceiling of each subset:", ""]
        rows = []
        for subset, row in next(iter(arms[arm].values()))["subsets"].items():
            fold_means = [summary["subsets"][subset]["mean"] for summary in arms[arm].values()]
            rows.append([subset.replace("+", " + "), _mean(summarize(fold_means)), f"{row['ceiling']:.4f}"])
        lines += _table(["inputs", "mean ± std over folds", "ceiling"], rows)
    summaries = [summary for folds_of_arm in arms.values() for summary in folds_of_arm.values()]
    first, machine = summaries[0], summaries[0]["machine"]
    seconds = sum(summary["seconds"]["mean"] * len(summary["seeds"]) for summary in summaries)
    count = sum(len(summary["seeds"]) for summary in summaries)
    sizes = "; ".join(f"{arm} {next(iter(summaries.values()))['parameters']:,}" for arm, summaries in arms.items())
    lines += [
        "",
        "![Metrics of each arm: mean, and value of each fold](plot.png)",
        "",
        f"{len(first['seeds'])} seeds{_FOLDED if len(folds) > 1 else ''}.",
        f"Parameters: {sizes}. {count} runs of {seconds / count:.0f} s each on {machine['devices']} "
        f"({machine['kind']}, {machine['cores']} cores).",
        f"Versions: {_versions(first)}.",
        "",
    ]
    return "\n".join(lines)


_FOLDED = " per fold; the std over all folds pools folds and seeds, the std of one fold is over its seeds"


def group_by_metric(shown: Mapping[str, Sequence[tuple[str, str]]]) -> dict[tuple[str, str], list[str]]:
    """Inverts {arm: [(split, metric)]} to {(split, metric): arms}."""
    arms: dict[tuple[str, str], list[str]] = {}
    for arm, pairs in shown.items():
        for pair in pairs:
            arms.setdefault(pair, []).append(arm)
    return arms


def pool_folds(folds: Mapping[str, Mapping[str, Any]], split: str, metric: str) -> dict[str, Any]:
    """Returns the statistics of a metric over all folds and seeds pooled."""
    return summarize([row[split][metric] for summary in folds.values() for row in summary["seeds"].values()])


def _versions(results: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {results['versions'][name]}" for name in ("mmjax", "python", "jax", "flax", "optax"))


def _mean(row: Mapping[str, float]) -> str:
    return f"{row['mean']:.4f}" + ("" if row["deviation"] is None else f" ± {row['deviation']:.4f}")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
