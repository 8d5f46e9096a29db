"""The recorded result of an experiment, as statistics over seeds, verdicts and Markdown tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

BEGINS, ENDS = "<!-- recorded result: begin -->", "<!-- recorded result: end -->"
"""Between these two marks README.md holds what `mmjax reproduce --record` writes."""


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (None for one value), smallest, largest."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "deviation": deviation, "smallest": min(values), "largest": max(values)}


def judge(mean: float, ceiling: float, examples: int, within: float) -> str:
    """Whether an accuracy, the mean over seeds on `examples` examples, is where an honest model can be.

    Above the ceiling by more than two binomial standard errors, the model knows what it should not, or the evaluation
    is wrong. The seeds share their examples, so that more seeds do not make the error smaller.
    """
    error = math.sqrt(ceiling * (1 - ceiling) / examples)
    if mean > ceiling + 2 * error:
        return f"ABOVE by {100 * (mean - ceiling):.1f} points"
    if mean < ceiling - within:
        return f"SHORT by {100 * (ceiling - mean):.1f} points"
    return "as expected"


def markdown(found: Mapping[str, Any], shown: Mapping[str, Sequence[str]], about: str) -> str:
    """The tables of README.md.

    Args:
      found: what results.json holds.
      shown: {split: metrics} of the first table.
      about: what the table of subsets shows, in words.
    """
    seeds = list(found["seeds"])
    rows = []
    for split, names in shown.items():
        for name in names:
            each = [f"{found['seeds'][seed][split][name]:.4f}" for seed in seeds]
            rows.append([split, f"`{name}`", _mean(found["metrics"][split][name]), *each])
    lines = _table(["split", "metric", "mean ± deviation", *(f"seed {seed}" for seed in seeds)], rows)
    if found["subsets"]:
        lines += ["", f"{about[:1].upper()}{about[1:]}, with some inputs only, beside the best that they allow:", ""]
        rows = [
            [subset.replace("+", " + "), _mean(row), f"{row['smallest']:.4f} – {row['largest']:.4f}"]
            + [f"{row['ceiling']:.4f}", row["verdict"]]
            for subset, row in found["subsets"].items()
        ]
        lines += _table(["inputs", "mean ± deviation", "smallest – largest", "best possible", "verdict"], rows)
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in ("mmjax", "python", "jax", "flax", "optax"))
    machine = found["machine"]
    sizes = ", ".join(f"{count:,} in {split}" for split, count in found["examples"].items())
    lines += [
        "",
        "![Left: the metric while training, for each seed; right: each subset beside its ceiling](plot.png)",
        "",
        f"{found['parameters']:,} parameters; {found['seconds']['mean']:.0f} s a seed, evaluation included, on "
        f"{machine['devices']} ({machine['kind']}, {machine['cores']} cores).",
        f"Examples: {sizes}. Deviations are sample standard deviations over {len(seeds)} seed(s).",
        f"Versions: {versions}.",
        "",
    ]
    return "\n".join(lines)


def _mean(row: Mapping[str, float]) -> str:
    return f"{row['mean']:.4f}" + ("" if row["deviation"] is None else f" ± {row['deviation']:.4f}")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
