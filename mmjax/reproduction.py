"""Experiments that can be repeated: a folder with a question, a recorded result, and what makes it again.

experiment.json says what is run and what counts (`ReproductionConfig`); results.json is what was recorded; README.md
holds the question and, between two marks, the recorded tables; plot.png shows them. The last three are written by
`reproduce(record=True)`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table

from mmjax import runs
from mmjax.config import AtLeast, Within, build
from mmjax.data.dataset import check_split
from mmjax.errors import UserError, nearest
from mmjax.experiment import CHANGEABLE, Experiment, plain
from mmjax.files import write_atomically, write_json
from mmjax.recipe import check_key, load_recipe
from mmjax.reporting.records import BEGINS, ENDS, judge, markdown, spread
from mmjax.training.metrics_log import read_rows
from mmjax.workdir import check_same_config

Share = Annotated[float, AtLeast(0)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubsetsConfig:
    """Which table of subsets is held against the ceilings of the dataset.

    Attributes:
      split: of the recipe's `evaluate.splits`.
      metric: an accuracy, like "answer/accuracy".
      within: how far below its ceiling each subset may be.
    """

    split: str
    metric: str
    within: Share


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReproductionConfig:
    """What experiment.json holds.

    Attributes:
      question: what the experiment answers.
      config: the recipe and its argument, "configs/NAME.py:ARGUMENT", seen from the folder that holds `experiments/`.
      overrides: {key of the recipe, like "train.steps": value}.
      seeds: of the recorded runs.
      metrics: {split: {metric: how far the mean over seeds may be from the recorded one}}.
      subsets: the table of subsets, if there is one.
    """

    question: str
    config: str
    seeds: tuple[Annotated[int, Within(0, 2**32 - 1)], ...]
    metrics: dict[str, dict[str, Share]]
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    subsets: SubsetsConfig | None = None

    def __post_init__(self):
        if not self.seeds or not self.metrics:
            raise ValueError("seeds or metrics are empty; name at least one of each")


def reproduce(
    folder: pathlib.Path,
    seeds: Sequence[int] | None,
    workdir: pathlib.Path,
    *,
    record: bool = False,
    console: Console | None = None,
) -> bool:
    """Trains an experiment and compares it with its recorded result, or records it.

    Args:
      folder: of the experiment.
      seeds: which of its seeds; all by default.
      workdir: where `seed_0` and so on go; what is there already goes on, or is taken as it is.
      record: whether to write the result into `folder`.

    Returns:
      Whether all metrics are within their tolerances, and all subsets where they should be.

    Raises:
      UserError: before anything is trained, where the experiment, the recipe or a workdir is wrong.
    """
    console = console or Console()
    config = _read(folder)
    seeds = list(config.seeds if seeds is None else seeds)
    if not seeds or not set(seeds) <= set(config.seeds):
        raise UserError("--seeds", f"{seeds} are not of {folder}", f"choose from {list(config.seeds)}")
    recorded = None if record else _recorded(folder)
    if record and sorted(seeds) != sorted(config.seeds):
        raise UserError("--seeds", f"{seeds} are not those of {folder}", "record all seeds, without --seeds")
    recipes = {seed: _recipe(folder, config, seed) for seed in seeds}
    folders = {seed: workdir / f"seed_{seed}" for seed in seeds}
    experiment = Experiment(recipes[seeds[0]])
    _check(folder, config, experiment)
    for seed in seeds:
        check_same_config(folders[seed], recipes[seed], _MAY_DIFFER)
    results = {seed: _result(recipes[seed], folders[seed], console) for seed in seeds}
    examples = {split: experiment.pipeline.size(split) for split in experiment.config.evaluate.splits}
    found = _summary(config, results, folders, examples)
    if recorded is None:
        write_json(folder / "results.json", found)
        _write_pictures(folder, config, found)
        console.print(f"recorded in {folder}")
        return _print_subsets(console, config, found)
    same = _print_comparison(console, config, recorded, found)
    same &= _print_subsets(console, config, found)
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


def _recipe(folder: pathlib.Path, config: ReproductionConfig, seed: int) -> dict[str, Any]:
    """The recipe with the overrides and the seed."""
    where = f"{folder / 'experiment.json'}"
    recipe = load_recipe(str(folder.resolve().parent.parent / config.config), f"{where} config")
    with recipe.ignore_type(), recipe.unlocked():
        for key, value in {**config.overrides, "seed": seed}.items():
            check_key(recipe, key, f"{where} overrides.{key}")
            recipe.update_from_flattened_dict({key: value})
    return plain(recipe)


def _check(folder: pathlib.Path, config: ReproductionConfig, experiment: Experiment) -> None:
    """Finds before the training what would not be there after it."""
    path, splits = folder / "experiment.json", experiment.config.evaluate.splits
    wanted = [(f"metrics.{split}", split, name) for split, metrics in config.metrics.items() for name in metrics]
    if config.subsets:
        wanted.append(("subsets", config.subsets.split, config.subsets.metric))
        if not experiment.config.evaluate.subsets:
            raise UserError(f"{path} subsets", "the recipe evaluates no subsets", "set evaluate.subsets to True")
    for where, split, metric in wanted:
        check_split(split, splits, f"{path} {where}")
        if metric not in experiment.evaluated_metrics:
            known = nearest(metric, experiment.evaluated_metrics)
            raise UserError(f"{path} {where}", f"no metric is named {metric!r}", known)
    if config.subsets and config.subsets.metric not in experiment.ceilings(config.subsets.split):
        known = nearest(config.subsets.metric, experiment.ceilings(config.subsets.split))
        raise UserError(f"{path} subsets.metric", f"nobody knows the ceilings of {config.subsets.metric!r}", known)


def _result(recipe: Mapping[str, Any], workdir: pathlib.Path, console: Console) -> dict[str, Any]:
    """The result of one seed, trained unless it is there."""
    path = workdir / "result.json"
    if not path.is_file():
        console.rule(f"seed {recipe['seed']}")
        return runs.train(recipe, workdir, console)
    result = _load(path)
    console.print(f"seed {recipe['seed']}: trained already, at commit {result['git_commit']}, in {workdir}")
    return result


def _summary(
    config: ReproductionConfig,
    results: Mapping[int, Mapping[str, Any]],
    workdirs: Mapping[int, pathlib.Path],
    examples: Mapping[str, int],
) -> dict[str, Any]:
    """What results.json holds."""
    first = next(iter(results.values()))
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
        metrics[split] = {name: spread([r[split][name] for r in results.values()]) for name in sorted(names)}
    subsets: dict[str, Any] = {}
    if config.subsets:
        split, metric = config.subsets.split, config.subsets.metric
        ceilings = first["ceilings"][split][metric]
        # The smallest first, as files hold them in alphabetical order.
        for subset in sorted(ceilings, key=lambda name: (name.count("+"), name)):
            ceiling = ceilings[subset]
            # A task that reads one input counts nothing where that input is absent.
            values = [result["subsets"][split][subset].get(metric) for result in results.values()]
            if None not in values:
                row = spread(values)
                verdict = judge(row["mean"], ceiling, examples[split], config.subsets.within)
                subsets[subset] = {**row, "ceiling": ceiling, "verdict": verdict}
    return {
        "config": config.config,
        "overrides": config.overrides,
        "examples": dict(examples),
        "parameters": first["parameters"],
        "metrics": metrics,
        "subsets": subsets,
        "seeds": seeds,
        "curves": {str(seed): _curves(config, workdirs[seed]) for seed in results},
        "versions": first["versions"],
        "machine": {"devices": first["devices"], "kind": first["machine"], "cores": os.cpu_count()},
        "seconds": spread([result["seconds"]["all"] for result in results.values()]),
    }


def _curves(config: ReproductionConfig, workdir: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
    """{split: [(step, value)]} of the first metric that counts, as it was logged."""
    metric = _headline(config)
    rows = read_rows(workdir)
    return {
        split: [(row["step"], row[metric]) for row in rows if row["split"] == split and row.get(metric) is not None]
        for split in ("train", "validation")
    }


def _headline(config: ReproductionConfig) -> str:
    return next(name for metrics in config.metrics.values() for name in metrics)


def _write_pictures(folder: pathlib.Path, config: ReproductionConfig, found: Mapping[str, Any]) -> None:
    """plot.png, and README.md with its text as it was and new tables between the marks."""
    from mmjax.reporting.plots import plot_experiment

    plot_experiment(folder / "plot.png", _headline(config), found["curves"], found["subsets"])
    path = folder / "README.md"
    text = path.read_text() if path.is_file() else f"# {folder.resolve().name}\n\n{config.question}\n"
    if BEGINS not in text or ENDS not in text:
        text += f"\n{BEGINS}\n{ENDS}\n"
    before, _, rest = text.partition(BEGINS)
    after = rest.partition(ENDS)[2]
    shown = {split: list(metrics) for split, metrics in config.metrics.items()}
    about = f"`{config.subsets.metric}` on {config.subsets.split}" if config.subsets else ""
    write_atomically(path, f"{before}{BEGINS}\n\n{markdown(found, shown, about)}\n{ENDS}{after}")


def _print_comparison(
    console: Console, config: ReproductionConfig, recorded: Mapping[str, Any], found: Mapping[str, Any]
) -> bool:
    table = Table(title="recorded and found", title_justify="left", title_style="bold")
    for name in ("split", "metric", "recorded", "found", "difference", "tolerance", "within"):
        table.add_column(name, justify="left" if name in ("split", "metric") else "right")
    same = True
    for split, metrics in config.metrics.items():
        for name, tolerance in metrics.items():
            old, new = recorded["metrics"].get(split, {}).get(name), found["metrics"][split].get(name)
            if old is None or new is None:
                table.add_row(split, name, *("–" if row is None else f"{row['mean']:.4f}" for row in (old, new)))
                same = False
                continue
            difference = new["mean"] - old["mean"]
            within = abs(difference) <= tolerance
            same &= within
            numbers = f"{old['mean']:.4f}", f"{new['mean']:.4f}", f"{difference:+.4f}", f"{tolerance:.4f}"
            table.add_row(split, name, *numbers, "yes" if within else "NO")
    console.print(table)
    for seed, row in found["seeds"].items():
        old = recorded["seeds"].get(seed)
        if old and old["parameters_hash"] == row["parameters_hash"]:
            console.print(f"seed {seed}: the same parameters, bit for bit")
        elif old:
            console.print(f"seed {seed}: other parameters, as on another machine or with other versions")
    return same


def _print_subsets(console: Console, config: ReproductionConfig, found: Mapping[str, Any]) -> bool:
    if not config.subsets:
        return True
    title = f"{config.subsets.metric} on {config.subsets.split} with some inputs only"
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in ("inputs", "found", "best possible", "verdict"):
        table.add_column(name, justify="right" if name in ("found", "best possible") else "left", no_wrap=True)
    for subset, row in found["subsets"].items():
        table.add_row(subset, f"{row['mean']:.4f}", f"{row['ceiling']:.4f}", row["verdict"])
    console.print(table)
    return all(row["verdict"] == "as expected" for row in found["subsets"].values())
