"""Experiments that can be repeated: a folder with a question, a recorded result, and what makes it again.

experiment.json says what is run and what counts (`ReproductionConfig`); results.json is what was recorded; README.md
holds the question and, between two marks, the recorded tables; plot.png shows them. The last three are written by
`reproduce(record=True)`.

An experiment is one recipe with several seeds, or several `arms` that are held against each other, each on all `folds`.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from mmjax.config import build
from mmjax.data.dataset import check_split
from mmjax.errors import UserError, nearest
from mmjax.experiment import CHANGEABLE, Experiment, plain
from mmjax.files import write_atomically, write_json
from mmjax.runs.parallel import PlannedRun, train_all
from mmjax.recipe import check_key, load_recipe
from mmjax.reporting.records import BEGIN_MARK, END_MARK, arms_markdown, group_by_metric, judge, results_markdown, summarize
from mmjax.runs.reproduction_config import Cell, ReproductionConfig
from mmjax.training.metrics_log import read_rows
from mmjax.runs.workdir import check_same_config


def reproduce(
    folder: pathlib.Path,
    seeds: Sequence[int] | None,
    workdir: pathlib.Path,
    *,
    arms: Sequence[str] | None = None,
    folds: Sequence[str] | None = None,
    record: bool = False,
    jobs: int = 1,
    console: Console | None = None,
) -> bool:
    """Trains an experiment and compares it with its recorded result, or records it.

    Args:
      folder: of the experiment.
      seeds, arms, folds: which of the experiment's; all by default.
      workdir: where `seed_0` and so on go, below a folder for each arm and fold; what is there already goes on, or is
        taken as it is.
      record: whether to write the result into `folder`.
      jobs: runs at a time, each in a process with its share of the processor's cores.

    Returns:
      Whether all metrics are within their tolerances, and all subsets where they should be.

    Raises:
      UserError: before anything is trained, where the experiment, the recipe or a workdir is wrong.
    """
    console = console or Console()
    config = _read(folder)
    seeds = _chosen("--seeds", seeds, config.seeds, folder, record)
    arms = _chosen("--arms", arms, config.arms or [""], folder, record)
    folds = _chosen("--folds", folds, config.folds or [""], folder, record)
    cells = [cell for cell in config.cells if cell.arm in arms and cell.fold in folds]
    recorded = None if record else _recorded(folder)
    runs: dict[str, dict[int, PlannedRun]] = {}
    experiments: dict[str, Experiment] = {}
    for cell in cells:
        place = workdir / cell.arm / cell.fold
        runs[cell.name] = {seed: PlannedRun(_recipe(folder, cell, seed), place / f"seed_{seed}") for seed in seeds}
        experiments[cell.name] = Experiment(runs[cell.name][seeds[0]].recipe)
        _check(folder, cell, experiments[cell.name])
        for run in runs[cell.name].values():
            check_same_config(run.workdir, run.recipe, _MAY_DIFFER)
    results = train_all({(name, seed): run for name in runs for seed, run in runs[name].items()}, jobs, console)
    found = {
        cell.name: _summary(
            cell,
            {seed: results[cell.name, seed] for seed in seeds},
            {seed: run.workdir for seed, run in runs[cell.name].items()},
            experiments[cell.name],
        )
        for cell in cells
    }
    if recorded is None:
        _record(folder, config, found)
        console.print(f"recorded in {folder}")
        return _print_subsets(console, cells, found)
    same = _print_comparison(console, cells, recorded, found)
    same &= _print_subsets(console, cells, found)
    console.print("reproduced" if same else "NOT reproduced", style="bold green" if same else "bold red")
    return same


_MAY_DIFFER = tuple(key for key in CHANGEABLE if key != "train.steps")


def _read(folder: pathlib.Path) -> ReproductionConfig:
    path = folder / "experiment.json"
    if not path.is_file():
        known = [str(other.parent) for other in folder.parent.glob("*/experiment.json")]
        raise UserError(str(folder), "holds no experiment.json", nearest(str(folder), known))
    return build(ReproductionConfig, _load(path), str(path))


def _recorded(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / "results.json"
    if not path.is_file():
        raise UserError(str(path), "is not there: nothing is recorded yet", "run with --record first")
    return _load(path)


def _load(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(str(path), f"is not JSON: {error}", "correct it") from error


def _chosen(flag: str, wanted: Sequence[Any] | None, known: Iterable[Any], folder: pathlib.Path, whole: bool) -> list:
    """What is wanted of what there is, all by default. Raises a UserError; where `whole`, unless it is all."""
    chosen = list(known if wanted is None else wanted)
    if not chosen or not set(chosen) <= set(known):
        raise UserError(flag, f"{chosen} are not of {folder}", f"choose from {list(known)}")
    if whole and set(chosen) != set(known):
        raise UserError(flag, f"{chosen} are not all of {folder}", f"record all of them, without {flag}")
    return chosen


def _recipe(folder: pathlib.Path, cell: Cell, seed: int) -> dict[str, Any]:
    """The recipe with the overrides and the seed."""
    where = f"{folder / 'experiment.json'}"
    recipe = load_recipe(str(_above(folder) / cell.config), f"{where} config")
    with recipe.ignore_type(), recipe.unlocked():
        for key, value in {**cell.overrides, "seed": seed}.items():
            check_key(recipe, key, f"{where} overrides.{key}")
            recipe.update_from_flattened_dict({key: value})
    return plain(recipe)


def _above(folder: pathlib.Path) -> pathlib.Path:
    """The folder that holds `experiments/`, however deep in it the experiment lies."""
    place = folder.resolve()
    return next((above.parent for above in place.parents if above.name == "experiments"), place.parent.parent)


def _check(folder: pathlib.Path, cell: Cell, experiment: Experiment) -> None:
    """Finds before the training what would not be there after it."""
    path, splits = folder / "experiment.json", experiment.config.evaluate.splits
    wanted = [(f"metrics.{split}", split, name) for split, metrics in cell.metrics.items() for name in metrics]
    if cell.subsets:
        wanted.append(("subsets", cell.subsets.split, cell.subsets.metric))
        if not experiment.config.evaluate.subsets:
            raise UserError(f"{path} subsets", "the recipe evaluates no subsets", "set evaluate.subsets to True")
    for where, split, metric in wanted:
        check_split(split, splits, f"{path} {where}")
        if metric not in experiment.evaluated_metrics:
            known = nearest(metric, experiment.evaluated_metrics)
            raise UserError(f"{path} {where}", f"no metric is named {metric!r}", known)
    if cell.subsets and cell.subsets.metric not in experiment.ceilings(cell.subsets.split):
        known = nearest(cell.subsets.metric, experiment.ceilings(cell.subsets.split))
        raise UserError(f"{path} subsets.metric", f"nobody knows the ceilings of {cell.subsets.metric!r}", known)


def _summary(
    cell: Cell,
    results: Mapping[int, Mapping[str, Any]],
    workdirs: Mapping[int, pathlib.Path],
    experiment: Experiment,
) -> dict[str, Any]:
    """What results.json holds of a cell."""
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
        metrics[split] = {name: summarize([r[split][name] for r in results.values()]) for name in sorted(names)}
    subsets: dict[str, Any] = {}
    if cell.subsets:
        split, metric = cell.subsets.split, cell.subsets.metric
        ceilings = first["ceilings"][split][metric]
        # The smallest first, as files hold them in alphabetical order.
        for subset in sorted(ceilings, key=lambda name: (name.count("+"), name)):
            ceiling = ceilings[subset]
            # A task that reads one input counts nothing where that input is absent.
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
    """{split: [(step, value)]} of the first metric that counts, as it was logged."""
    metric = cell.primary_metric[1]
    rows = read_rows(workdir)
    return {
        split: [(row["step"], row[metric]) for row in rows if row["split"] == split and row.get(metric) is not None]
        for split in ("train", "validation")
    }


def _record(folder: pathlib.Path, config: ReproductionConfig, found: Mapping[str, dict[str, Any]]) -> None:
    """results.json; plot.png; and README.md with its text as it was and new tables between the marks."""
    from mmjax.reporting.plots import plot_arms, plot_experiment

    cells = config.cells
    if config.arms:
        arms: dict[str, dict[str, Any]] = {}
        for cell in cells:
            arms.setdefault(cell.arm, {})[cell.fold] = found[cell.name]
        write_json(folder / "results.json", {"arms": arms})
        shown = {cell.arm: [(split, name) for split, names in cell.metrics.items() for name in names] for cell in cells}
        plot_arms(folder / "plot.png", arms, group_by_metric(shown))
        subsets = {cell.arm: (cell.subsets.split, cell.subsets.metric) for cell in cells if cell.subsets}
        tables = arms_markdown(arms, shown, subsets)
    else:
        (cell,) = cells
        only = found[cell.name]
        write_json(folder / "results.json", only)
        plot_experiment(folder / "plot.png", cell.primary_metric[1], only["curves"], only["subsets"])
        about = f"`{cell.subsets.metric}` on {cell.subsets.split}" if cell.subsets else ""
        tables = results_markdown(only, {split: list(metrics) for split, metrics in cell.metrics.items()}, about)
    path = folder / "README.md"
    text = path.read_text() if path.is_file() else f"# {folder.resolve().name}\n\n{config.question}\n"
    if BEGIN_MARK not in text or END_MARK not in text:
        text += f"\n{BEGIN_MARK}\n{END_MARK}\n"
    before, _, rest = text.partition(BEGIN_MARK)
    after = rest.partition(END_MARK)[2]
    write_atomically(path, f"{before}{BEGIN_MARK}\n\n{tables}\n{END_MARK}{after}")


def _recorded_of(recorded: Mapping[str, Any], cell: Cell) -> Mapping[str, Any]:
    """What results.json holds of a cell; nothing where it was not there yet."""
    none: dict[str, Any] = {"metrics": {}, "seeds": {}}
    return recorded.get("arms", {}).get(cell.arm, {}).get(cell.fold, none) if cell.arm else recorded


def _print_comparison(
    console: Console, cells: Sequence[Cell], recorded: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]
) -> bool:
    table = Table(title="recorded and found", title_justify="left", title_style="bold")
    for name in ("run", "split", "metric", "recorded", "found", "difference", "tolerance", "within"):
        table.add_column(name, justify="left" if name in ("run", "split", "metric") else "right")
    same, hashes = True, []
    for cell in cells:
        then, now = _recorded_of(recorded, cell), found[cell.name]
        for split, metrics in cell.metrics.items():
            for name, tolerance in metrics.items():
                old, new = then["metrics"].get(split, {}).get(name), now["metrics"][split].get(name)
                if old is None or new is None:
                    means = ("–" if row is None else f"{row['mean']:.4f}" for row in (old, new))
                    table.add_row(cell.name, split, name, *means)
                    same = False
                    continue
                difference = new["mean"] - old["mean"]
                within = abs(difference) <= tolerance
                same &= within
                numbers = f"{old['mean']:.4f}", f"{new['mean']:.4f}", f"{difference:+.4f}", f"{tolerance:.4f}"
                table.add_row(cell.name, split, name, *numbers, "yes" if within else "NO")
        for seed, row in now["seeds"].items():
            if old := then["seeds"].get(seed):
                equal = old["parameters_hash"] == row["parameters_hash"]
                verdict = "the same parameters, bit for bit" if equal else "other parameters, as on another machine"
                hashes.append(f"{cell.name} seed {seed}: {verdict}{'' if equal else ' or with other versions'}".strip())
    console.print(table)
    for line in hashes:
        console.print(line, highlight=False)
    return same


def _print_subsets(console: Console, cells: Sequence[Cell], found: Mapping[str, Mapping[str, Any]]) -> bool:
    """Prints the table of each cell that has one; returns whether all are as expected."""
    expected = True
    for cell in cells:
        if not cell.subsets:
            continue
        title = f"{cell.name} {cell.subsets.metric} on {cell.subsets.split} with some inputs only".strip()
        table = Table(title=title, title_justify="left", title_style="bold")
        for name in ("inputs", "found", "best possible", "verdict"):
            table.add_column(name, justify="right" if name in ("found", "best possible") else "left", no_wrap=True)
        for subset, row in found[cell.name]["subsets"].items():
            table.add_row(subset, f"{row['mean']:.4f}", f"{row['ceiling']:.4f}", row["verdict"])
            expected &= row["verdict"] == "as expected"
        console.print(table)
    return expected
