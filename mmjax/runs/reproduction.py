"""Reproduction of experiments with recorded results.

An experiment is a folder with experiment.json (runs, metrics and tolerances; `ReproductionConfig`), results.json
(recorded results), README.md (question and, between two marks, tables of the results) and plot.png.
`reproduce(record=True)` writes the last three.

An experiment trains one recipe with several seeds, or compares several `arms`, each on all `folds`. An experiment
without runs, such as a set of recorded plans, has a script check.py instead of experiment.json.
"""

from __future__ import annotations

import math
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from mmjax.config import build
from mmjax.data.dataset import check_split
from mmjax.errors import UserError, nearest
from mmjax.experiment import CHANGEABLE_ON_RESUME, Experiment, plain, resolve_paths
from mmjax.files import load_json, write_atomically, write_json
from mmjax.recipe import check_key, load_recipe
from mmjax.reporting.records import (
    BEGIN_MARK,
    END_MARK,
    arms_markdown,
    group_by_metric,
    judge,
    results_markdown,
    summarize,
)
from mmjax.runs.parallel import PlannedRun, train_all
from mmjax.runs.reproduction_config import Cell, ReproductionConfig
from mmjax.runs.shrink import shrink
from mmjax.runs.workdir import check_same_config
from mmjax.training.metrics_log import read_rows


def reproduce(
    folder: pathlib.Path,
    seeds: Sequence[int] | None,
    workdir: pathlib.Path,
    *,
    arms: Sequence[str] | None = None,
    folds: Sequence[str] | None = None,
    record: bool = False,
    quick: bool = False,
    jobs: int = 1,
    console: Console | None = None,
) -> bool:
    """Trains an experiment and compares it with its recorded result, or records the new result.

    Args:
      folder: folder of the experiment.
      seeds, arms, folds: subset of the experiment's; all by default.
      workdir: parent of the runs' workdirs, ARM/FOLD/seed_SEED. Finished runs are reused, interrupted ones resumed.
      record: write the result to `folder`.
      quick: train each arm in the small form of `mmjax.runs.shrink`, by default with the first seed on the first fold,
        and compare only the set of entries in the record, not their values.
      jobs: number of parallel runs, each in a process with its share of the CPU cores.
      console: output of progress and tables.

    Returns:
      True if all metrics are within their tolerances and all accuracies by subset are as expected; with `quick`, if
      the record has the same entries.

    Raises:
      UserError: if the experiment, the recipe or a workdir is invalid, before training.
    """
    console = console or Console()
    if is_checked_by_script(folder):
        return _run_check(folder, quick)
    config = _read_config(folder)
    known_folds = list(config.folds or [""])
    if quick:
        seeds = config.seeds[:1] if seeds is None else seeds
        folds = known_folds[:1] if folds is None else folds
    seeds = _select("--seeds", seeds, config.seeds, folder, record)
    arms = _select("--arms", arms, config.arms or [""], folder, record)
    folds = _select("--folds", folds, known_folds, folder, record)
    cells = [cell for cell in config.cells if cell.arm in arms and cell.fold in folds]
    recorded = None if record else _read_results(folder)
    runs: dict[str, dict[int, PlannedRun]] = {}
    experiments: dict[str, Experiment] = {}
    for cell in cells:
        parent = workdir / cell.arm / cell.fold
        runs[cell.name] = {
            seed: PlannedRun(_recipe(folder, cell, seed, quick), parent / f"seed_{seed}") for seed in seeds
        }
        experiments[cell.name] = Experiment(runs[cell.name][seeds[0]].recipe)
        _check(folder, cell, experiments[cell.name])
        for run in runs[cell.name].values():
            check_same_config(run.workdir, run.recipe, _CHANGEABLE)
    results = train_all({(name, seed): run for name in runs for seed, run in runs[name].items()}, jobs, console)
    summaries = {
        cell.name: _summary(
            cell,
            {seed: results[cell.name, seed] for seed in seeds},
            {seed: run.workdir for seed, run in runs[cell.name].items()},
            experiments[cell.name],
        )
        for cell in cells
    }
    if quick and recorded is not None:
        return _print_entries(console, cells, recorded, summaries)
    if recorded is None:
        _record(folder, config, summaries)
        console.print(f"recorded in {folder}")
        return _print_subsets(console, cells, summaries)
    reproduced = _print_comparison(console, cells, recorded, summaries)
    reproduced &= _print_subsets(console, cells, summaries)
    console.print("reproduced" if reproduced else "NOT reproduced", style=f"bold {'green' if reproduced else 'red'}")
    return reproduced


def is_checked_by_script(folder: pathlib.Path) -> bool:
    """Returns True for an experiment without runs, whose record is checked by its script check.py."""
    return not (folder / "experiment.json").is_file() and (folder / "check.py").is_file()


def _run_check(folder: pathlib.Path, quick: bool) -> bool:
    command = [sys.executable, str(folder / "check.py"), *([] if quick else ["--full"])]
    # Make the script import the same copy of mmjax as this process.
    path = os.pathsep.join([str(pathlib.Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}).returncode == 0


def find_experiments(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders of all experiments below `folder`, sorted. Raises a UserError if there are none."""
    found = sorted(
        path for path in folder.rglob("*") if (path / "experiment.json").is_file() or is_checked_by_script(path)
    )
    if not found:
        raise UserError(str(folder), "contains no experiments", "run in the folder that contains experiments/")
    return found


_CHANGEABLE = tuple(key for key in CHANGEABLE_ON_RESUME if key != "train.steps")


def _read_config(folder: pathlib.Path) -> ReproductionConfig:
    path = folder / "experiment.json"
    if not path.is_file():
        known = [str(other.parent) for other in folder.parent.glob("*/experiment.json")]
        raise UserError(str(folder), "contains no experiment.json", nearest(str(folder), known))
    return build(ReproductionConfig, load_json(path, "correct it"), str(path))


def _read_results(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / "results.json"
    if not path.is_file():
        raise UserError(str(path), "does not exist: no result is recorded yet", "run with --record first")
    return load_json(path, "correct it")


def _select(flag: str, given: Sequence[Any] | None, known: Iterable[Any], folder: pathlib.Path, record: bool) -> list:
    """Returns the given values, by default all known ones.

    Raises:
      UserError: if a value is unknown, or if some values are missing and `record` is true.
    """
    selected = list(known if given is None else given)
    if not selected or not set(selected) <= set(known):
        raise UserError(flag, f"{selected} are not in {folder}", f"choose from {list(known)}")
    if record and set(selected) != set(known):
        raise UserError(flag, f"{selected} are not all of {folder}", f"record all of them, without {flag}")
    return selected


def _recipe(folder: pathlib.Path, cell: Cell, seed: int, quick: bool = False) -> dict[str, Any]:
    """Returns the cell's plain config with its overrides and the seed; shrunk if `quick`."""
    where = f"{folder / 'experiment.json'}"
    recipe = load_recipe(str(_root(folder) / cell.config), f"{where} config")
    with recipe.ignore_type(), recipe.unlocked():
        for key, value in {**cell.overrides, "seed": seed}.items():
            check_key(recipe, key, f"{where} overrides.{key}")
            recipe.update_from_flattened_dict({key: value})
    raw = resolve_paths(plain(recipe))
    return shrink(raw) if quick else raw


def _root(folder: pathlib.Path) -> pathlib.Path:
    """Returns the folder that contains `experiments/`, for an experiment at any depth below it."""
    path = folder.resolve()
    return next((parent.parent for parent in path.parents if parent.name == "experiments"), path.parent.parent)


def _check(folder: pathlib.Path, cell: Cell, experiment: Experiment) -> None:
    """Checks, before training, that the results will contain the metrics and subsets of experiment.json."""
    path, splits = folder / "experiment.json", experiment.config.evaluate.splits
    required = [(f"metrics.{split}", split, name) for split, metrics in cell.metrics.items() for name in metrics]
    if cell.subsets:
        required.append(("subsets", cell.subsets.split, cell.subsets.metric))
        if not experiment.config.evaluate.subsets:
            raise UserError(f"{path} subsets", "the recipe evaluates no subsets", "set evaluate.subsets to True")
    for where, split, metric in required:
        check_split(split, splits, f"{path} {where}")
        if metric not in experiment.evaluated_metrics:
            remedy = nearest(metric, experiment.evaluated_metrics)
            raise UserError(f"{path} {where}", f"unknown metric {metric!r}", remedy)
    if cell.subsets and cell.subsets.metric not in experiment.ceilings(cell.subsets.split):
        remedy = nearest(cell.subsets.metric, experiment.ceilings(cell.subsets.split))
        raise UserError(f"{path} subsets.metric", f"no upper bound of {cell.subsets.metric!r} is known", remedy)


def _summary(
    cell: Cell,
    results: Mapping[int, Mapping[str, Any]],
    workdirs: Mapping[int, pathlib.Path],
    experiment: Experiment,
) -> dict[str, Any]:
    """Returns the entry of results.json for a cell, from the result.json of each seed."""
    first = next(iter(results.values()))
    examples = {split: experiment.pipeline.size(split) for split in experiment.config.evaluate.splits}
    seeds = {
        str(seed): {
            "parameters_hash": result["parameters_hash"],
            "steps": result["steps"],
            "seconds": result["seconds"],
            "git_commit": result["git_commit"],
            **{split: result[split] for split in examples},
        }
        for seed, result in results.items()
    }
    metrics: dict[str, dict[str, Any]] = {}
    for split in examples:
        names = set.intersection(*(set(result[split]) for result in results.values()))
        by_name = {name: [result[split][name] for result in results.values()] for name in sorted(names)}
        # Non-finite metrics are null in result.json. They get no mean, and the comparison lists them as missing.
        finite = {name: row for name, row in by_name.items() if None not in row and all(map(math.isfinite, row))}
        metrics[split] = {name: summarize(row) for name, row in finite.items()}
    subsets: dict[str, Any] = {}
    if cell.subsets:
        split, metric = cell.subsets.split, cell.subsets.metric
        ceilings = first["ceilings"][split][metric]
        # Sort by size, then alphabetically; JSON files are sorted only alphabetically.
        for subset in sorted(ceilings, key=lambda name: (name.count("+"), name)):
            ceiling = ceilings[subset]
            # A task has no metrics for subsets without any of its inputs.
            values = [result["subsets"][split][subset].get(metric) for result in results.values()]
            if None not in values:
                row = summarize(values)
                verdict = judge(row["mean"], ceiling, examples[split], cell.subsets.within)
                subsets[subset] = {**row, "ceiling": ceiling, "verdict": verdict}
    return {
        "config": cell.config,
        "overrides": cell.overrides,
        "examples": dict(examples),
        "parameters": first["parameters"],
        "metrics": metrics,
        "subsets": subsets,
        "seeds": seeds,
        "curves": {str(seed): _curves(cell, workdirs[seed]) for seed in results},
        "versions": first["versions"],
        "machine": {"devices": first["devices"], "kind": first["machine"], "cores": os.cpu_count()},
        "seconds": summarize([result["seconds"]["all"] for result in results.values()]),
    }


def _curves(cell: Cell, workdir: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
    """Returns the logged curve of the primary metric, `{split: [(step, value)]}`."""
    metric = cell.primary_metric[1]
    rows = read_rows(workdir)
    return {
        split: [(row["step"], row[metric]) for row in rows if row["split"] == split and row.get(metric) is not None]
        for split in ("train", "validation")
    }


def _record(folder: pathlib.Path, config: ReproductionConfig, summaries: Mapping[str, dict[str, Any]]) -> None:
    """Writes results.json and plot.png, and replaces the tables between the two marks of README.md."""
    from mmjax.reporting.plots import plot_arms, plot_experiment

    cells = config.cells
    if config.arms:
        arms: dict[str, dict[str, Any]] = {}
        for cell in cells:
            arms.setdefault(cell.arm, {})[cell.fold] = summaries[cell.name]
        write_json(folder / "results.json", {"arms": arms})
        shown = {cell.arm: [(split, name) for split, names in cell.metrics.items() for name in names] for cell in cells}
        plot_arms(folder / "plot.png", arms, group_by_metric(shown))
        subsets = {cell.arm: (cell.subsets.split, cell.subsets.metric) for cell in cells if cell.subsets}
        tables = arms_markdown(arms, shown, subsets)
    else:
        (cell,) = cells
        summary = summaries[cell.name]
        write_json(folder / "results.json", summary)
        plot_experiment(folder / "plot.png", cell.primary_metric[1], summary["curves"], summary["subsets"])
        about = f"`{cell.subsets.metric}` on {cell.subsets.split}" if cell.subsets else ""
        tables = results_markdown(summary, {split: list(metrics) for split, metrics in cell.metrics.items()}, about)
    path = folder / "README.md"
    text = path.read_text() if path.is_file() else f"# {folder.resolve().name}\n\n{config.question}\n"
    if BEGIN_MARK not in text or END_MARK not in text:
        text += f"\n{BEGIN_MARK}\n{END_MARK}\n"
    before, _, rest = text.partition(BEGIN_MARK)
    after = rest.partition(END_MARK)[2]
    write_atomically(path, f"{before}{BEGIN_MARK}\n\n{tables}\n{END_MARK}{after}")


def _recorded_summary(recorded: Mapping[str, Any], cell: Cell) -> Mapping[str, Any]:
    """Returns the entry of results.json for a cell; an empty one if the cell was added after recording."""
    empty: dict[str, Any] = {"metrics": {}, "seeds": {}}
    return recorded.get("arms", {}).get(cell.arm, {}).get(cell.fold, empty) if cell.arm else recorded


def _print_comparison(
    console: Console, cells: Sequence[Cell], recorded: Mapping[str, Any], summaries: Mapping[str, Mapping[str, Any]]
) -> bool:
    """Prints a table of recorded and new means. Returns True if all differences are within their tolerances."""
    table = Table(title="comparison with the recorded result", title_justify="left", title_style="bold")
    for name in ("run", "split", "metric", "recorded", "new", "difference", "tolerance", "within"):
        table.add_column(name, justify="left" if name in ("run", "split", "metric") else "right")
    reproduced, hashes = True, []
    for cell in cells:
        old_summary, new_summary = _recorded_summary(recorded, cell), summaries[cell.name]
        for split, metrics in cell.metrics.items():
            for name, tolerance in metrics.items():
                old = old_summary["metrics"].get(split, {}).get(name)
                new = new_summary["metrics"][split].get(name)
                if old is None or new is None:
                    means = ("–" if row is None else f"{row['mean']:.4f}" for row in (old, new))
                    table.add_row(cell.name, split, name, *means)
                    reproduced = False
                    continue
                difference = new["mean"] - old["mean"]
                within = abs(difference) <= tolerance
                reproduced &= within
                values = f"{old['mean']:.4f}", f"{new['mean']:.4f}", f"{difference:+.4f}", f"{tolerance:.4f}"
                table.add_row(cell.name, split, name, *values, "yes" if within else "NO")
        for seed, row in new_summary["seeds"].items():
            if old := old_summary["seeds"].get(seed):
                equal = old["parameters_hash"] == row["parameters_hash"]
                verdict = "bit-identical parameters" if equal else "different parameters (other machine or versions?)"
                hashes.append(f"{cell.name} seed {seed}: {verdict}".strip())
    console.print(table)
    for line in hashes:
        console.print(line, highlight=False)
    return reproduced


def _print_entries(
    console: Console, cells: Sequence[Cell], recorded: Mapping[str, Any], summaries: Mapping[str, Mapping[str, Any]]
) -> bool:
    """Prints entries that only the record or only the new result has. Returns True if there are none."""
    differences = []
    for cell in cells:
        old, new = _recorded_summary(recorded, cell), summaries[cell.name]
        seeds = {seed: row for seed, row in old["seeds"].items() if seed in new["seeds"]}
        curves = {seed: row for seed, row in old.get("curves", {}).items() if seed in new["seeds"]}
        before, after = _entries({**old, "seeds": seeds, "curves": curves}), _entries(new)
        differences += [f"{cell.name}: only in the record: {entry}" for entry in sorted(before - after)]
        differences += [f"{cell.name}: missing in the record: {entry}" for entry in sorted(after - before)]
    for line in differences:
        console.print(line.removeprefix(": "), highlight=False, markup=False)
    console.print(f"all {len(cells)} parts run; the record has {'other' if differences else 'the same'} entries")
    return not differences


def _entries(value: Any, path: str = "") -> set[str]:
    """Dotted paths of all leaves of nested dicts; `overrides` counts as one leaf."""
    if not isinstance(value, Mapping) or path == ".overrides":
        return {path.lstrip(".")}
    return {entry for key, child in value.items() for entry in _entries(child, f"{path}.{key}")}


def _print_subsets(console: Console, cells: Sequence[Cell], summaries: Mapping[str, Mapping[str, Any]]) -> bool:
    """Prints accuracies by subset of the inputs with their upper bounds. Returns True if all are as expected."""
    as_expected = True
    for cell in cells:
        if not cell.subsets:
            continue
        title = f"{cell.name} {cell.subsets.metric} on {cell.subsets.split} by subset of the inputs".strip()
        table = Table(title=title, title_justify="left", title_style="bold")
        for name in ("inputs", "accuracy", "best possible", "verdict"):
            table.add_column(name, justify="right" if name in ("accuracy", "best possible") else "left", no_wrap=True)
        for subset, row in summaries[cell.name]["subsets"].items():
            table.add_row(subset, f"{row['mean']:.4f}", f"{row['ceiling']:.4f}", row["verdict"])
            as_expected &= row["verdict"] == "as expected"
        console.print(table)
    return as_expected
