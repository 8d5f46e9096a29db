"""Plots of recorded results, as PNG."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

Curve = Sequence[tuple[int, float]]
"""(step, value) pairs."""

# Colour-blind safe palette (Okabe and Ito, 2008), one colour per seed or fold.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_GREY = "#555555"


def plot_experiment(
    path: pathlib.Path,
    metric: str,
    curves: Mapping[str, Mapping[str, Curve]],
    subsets: Mapping[str, Mapping[str, Any]],
) -> None:
    """Plots training curves of all seeds and, if given, metrics by input subset with their ceilings.

    Args:
      path: PNG file to write.
      metric: name of the metric.
      curves: {seed: {"train" or "validation": curve}}.
      subsets: {subset: {"mean", "smallest", "largest", "ceiling"}}; may be empty.
    """
    # `Figure` instead of pyplot, which selects a GUI backend and keeps figures in global state.
    from matplotlib.figure import Figure

    panels = 2 if subsets else 1
    figure = Figure(figsize=(5.6 * panels, 3.9), dpi=150, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _draw_curves(axes[0], metric, curves)
    if subsets:
        _draw_subsets(axes[1], metric, subsets)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Software": None})


def plot_arms(
    path: pathlib.Path,
    arms: Mapping[str, Mapping[str, Mapping[str, Any]]],
    shown: Mapping[tuple[str, str], Sequence[str]],
) -> None:
    """Plots the mean of each arm as a line and each fold as a point with its min-max range over seeds.

    Args:
      path: PNG file to write.
      arms: {arm: {fold: {"metrics": {split: {metric: {"mean", "smallest", "largest"}}}}}}.
      shown: {(split, metric): arms}, one panel each.
    """
    from matplotlib.figure import Figure

    folds = list(dict.fromkeys(fold for summaries in arms.values() for fold in summaries if fold))
    # Use as many legend columns as fit in a line of 80 characters.
    columns = max(1, min(len(folds), 80 // (8 + max((len(fold) for fold in folds), default=1))))
    legend = 0.22 * -(-len(folds) // columns)
    rows = [len(names) for names in shown.values()]
    figure = Figure(figsize=(7.2, legend + 0.9 * len(rows) + 0.62 * sum(rows)), dpi=150, layout="constrained")
    panels = figure.subplots(len(rows), 1, squeeze=False, height_ratios=[0.4 + count for count in rows])[:, 0]
    for axis, ((split, metric), names) in zip(panels, shown.items(), strict=True):
        statistics = {
            name: {fold: summary["metrics"][split][metric] for fold, summary in arms[name].items()} for name in names
        }
        _draw_arms(axis, statistics)
        axis.set_title(f"{metric} on {split}", fontsize=10, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    points = "each fold with its range over seeds" if folds else "range over seeds"
    panels[-1].set_xlabel(f"line: mean; point: {points}")
    if folds:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, loc="outside upper center", ncols=columns, fontsize=9)
    figure.savefig(path, metadata={"Software": None})


def _draw_arms(axis: Any, arms: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Draws one metric from {arm: {fold: {"mean", "smallest", "largest"}}}."""
    names, lowest, highest = list(arms)[::-1], math.inf, -math.inf
    for y, name in enumerate(names):
        rows = arms[name]
        mean = sum(row["mean"] for row in rows.values()) / len(rows)
        # A line instead of a bar, which would have to start at 0.
        axis.plot([mean, mean], [y - 0.36, y + 0.36], color="#9A9A9A", linewidth=2.5, solid_capstyle="butt")
        axis.text(1.005, y, f"{mean:.3f}", va="center", fontsize=9, color=_GREY, transform=axis.get_yaxis_transform())
        for index, (fold, row) in enumerate(rows.items()):
            lowest, highest = min(lowest, row["smallest"]), max(highest, row["largest"])
            # Offset folds vertically so that they do not overlap.
            height = y + 0.44 * (0.5 - (index + 0.5) / len(rows))
            errors = [[row["mean"] - row["smallest"]], [row["largest"] - row["mean"]]]
            colour = _COLOURS[index % len(_COLOURS)]
            label = fold if fold and y == 0 else None
            axis.errorbar(
                row["mean"],
                height,
                xerr=errors,
                color=colour,
                marker="o",
                markersize=4,
                capsize=2,
                label=label,
                clip_on=False,
            )
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(-0.5, len(names) - 0.5)
    if lowest >= 0 and highest <= 1:
        axis.set_xlim(max(0.0, lowest - max(0.02, 0.3 * (1.0 - lowest))), 1.0)
    else:
        axis.margins(x=0.1)
    axis.grid(axis="x", color="#E5E5E5")
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)


def _draw_curves(axis: Any, metric: str, curves: Mapping[str, Mapping[str, Curve]]) -> None:
    for index, (seed, splits) in enumerate(curves.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        if splits.get("train"):
            axis.plot(*zip(*splits["train"], strict=True), color=colour, linewidth=1, alpha=0.4)
        if splits.get("validation"):
            steps, values = zip(*splits["validation"], strict=True)
            axis.plot(steps, values, color=colour, linewidth=1.8, marker="o", markersize=4, label=f"seed {seed}")
        else:
            axis.plot([], [], color=colour, linewidth=1.8, label=f"seed {seed}")
    axis.set_title(f"{metric}: validation (bold) and training (pale)", fontsize=10, loc="left")
    axis.set_xlabel("step")
    axis.set_ylim(0, 1.02)
    axis.set_xlim(left=0)
    axis.grid(axis="y", color="#E5E5E5")
    axis.set_axisbelow(True)
    axis.legend(frameon=False, loc="lower right", fontsize=9)


def _draw_subsets(axis: Any, metric: str, subsets: Mapping[str, Mapping[str, Any]]) -> None:
    names = list(subsets)[::-1]
    for y, name in enumerate(names):
        row = subsets[name]
        axis.barh(y, row["mean"], height=0.62, color=_COLOURS[0], alpha=0.85)
        errors = [[row["mean"] - row["smallest"]], [row["largest"] - row["mean"]]]
        axis.errorbar(row["mean"], y, xerr=errors, color="black", capsize=2.5, linewidth=1)
        axis.plot([row["ceiling"]] * 2, [y - 0.42, y + 0.42], color=_COLOURS[1], linewidth=2.2)
        # Place the label right of both the bar and the ceiling mark.
        right = max(row["largest"], row["ceiling"])
        axis.text(right + 0.015, y, f"{row['mean']:.3f}", va="center", fontsize=9, color=_GREY)
    axis.plot([], [], color=_COLOURS[1], linewidth=2.2, label="ceiling")
    axis.set_yticks(range(len(names)), [name.replace("+", " + ") for name in names])
    axis.set_title(f"{metric} by input subset", fontsize=10, loc="left")
    axis.set_xlabel("mean and range over seeds")
    axis.set_xlim(0, 1.12)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
    axis.grid(axis="x", color="#E5E5E5")
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)
    # Place the legend level with the title, because bars fill the axes.
    axis.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.985), borderaxespad=0, fontsize=9)
