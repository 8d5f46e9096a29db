"""Prepare a dataset: check raw files and convert them to shards, or build the dataset of a recipe.

    mmjax prepare --source=photos/labels.csv --output=prepared/photos --dry_run
    mmjax prepare --source=photos/labels.csv --output=prepared/photos
    mmjax prepare --config=configs/digits.py

--source is a folder, a manifest (CSV, TSV, JSONL, Parquet), a tar file or a folder of them (WebDataset), tfds:NAME, a
folder of TFDS or ArrayRecord files, or a bucket URI (gs://…, s3://…). The kinds of its columns are inferred and
printed; set them with --columns. Every row is decoded, measured and compared with the others. Rows that are unreadable,
empty, duplicated, or leaked across splits are dropped, and listed with the reason in OUTPUT/findings.jsonl and on
OUTPUT/card.html. --dry_run writes only the report and the card, into OUTPUT.partial.

Run the same command again to resume after an interruption. To train on the result, see docs/own_data.md.

--alignment=WORKDIR detects mismatched inputs with the model of a run that has a contrastive task. Without it,
mismatches are detected using a label, if the data has one.

--config uses only the section `data` of the recipe. Training prepares its dataset as well; use this command to prepare
once before many runs, or on a machine without an accelerator.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags as absl_flags

from mmjax.commands.config_flag import define_config
from mmjax.errors import UserError, nearest
from mmjax.files import to_json, user_path

_MAX_WORKERS = 1000
_LIST_FLAGS = {"columns": dict, "splits": dict, "target": list, "keep": list, "drop": list}
_TEXT_FLAGS = ("format", "key", "split", "group", "stratify")


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of `mmjax prepare`."""
    define_config(flags, required=False)
    absl_flags.DEFINE_string("source", None, "raw data to prepare, instead of --config", flag_values=flags)
    absl_flags.DEFINE_string("output", None, "folder of the prepared data; must not exist", flag_values=flags)
    absl_flags.DEFINE_bool("dry_run", False, "report findings without writing shards", flag_values=flags)
    absl_flags.DEFINE_integer("workers", 0, "number of processes; 0 uses all cores", flag_values=flags)
    help_text = "local, or an Apache Beam runner such as DirectRunner"
    absl_flags.DEFINE_string("runner", "local", help_text, flag_values=flags)
    help_text = "workdir of a run with a contrastive task, whose model detects mismatched inputs"
    absl_flags.DEFINE_string("alignment", None, help_text, flag_values=flags)
    absl_flags.DEFINE_bool("json", False, "print the report as one JSON object", flag_values=flags)
    help_texts = {
        "columns": "inputs and targets: comma-separated NAME=COLUMN or NAME=COLUMN:KIND; *:table joins all others",
        "target": "comma-separated columns that are targets; the others are inputs",
        "splits": "comma-separated NAME=SHARE (default: train=0.8,validation=0.1,test=0.1)",
        "keep": "comma-separated findings to report without dropping their rows",
        "drop": "comma-separated findings whose rows are dropped instead of only reported",
        "format": "format of the source; inferred by default",
        "key": "column of unique row keys",
        "split": "column with the split of each row",
        "group": "column whose values must not be in two splits, such as a speaker",
        "stratify": "label by which splits are stratified; the first label by default",
    }
    for name in (*_LIST_FLAGS, *_TEXT_FLAGS):
        absl_flags.DEFINE_string(name, None, help_texts[name], flag_values=flags)
    help_text = "vocabulary size of a tokenizer trained on each text input, such as 8000"
    absl_flags.DEFINE_integer("train_tokenizer", None, help_text, flag_values=flags)
    help_text = "read files outside the folder of the manifest"
    absl_flags.DEFINE_bool("allow_outside", False, help_text, flag_values=flags)
    absl_flags.DEFINE_integer("folds", None, "number of cross-validation folds", flag_values=flags)
    absl_flags.DEFINE_integer("seed", None, "random seed (default: 0)", flag_values=flags)
    help_text = "KEY=VALUE of any other option, such as checks.image.blank=3; repeatable"
    absl_flags.DEFINE_multi_string("set", [], help_text, flag_values=flags)


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Prepares the source or the recipe that the flags name."""
    if (flags.config is None) == (flags.source is None):
        remedy = "give either --config=configs/NAME.py or --source=PATH --output=FOLDER"
        raise UserError("mmjax prepare", "needs either a recipe or a source", remedy)
    if flags.config is not None:
        _prepare_recipe(flags)
    else:
        _prepare_source(flags)


def _prepare_recipe(flags: absl_flags.FlagValues) -> None:
    """Prepares the dataset of a recipe and prints an overview."""
    from rich.console import Console

    from mmjax.config import build
    from mmjax.datasets import make_dataset
    from mmjax.experiment import DataConfig, ExperimentConfig, plain
    from mmjax.reporting.overview import print_key_values

    config = build(ExperimentConfig, plain(flags.config), "")
    shared, dataset = make_dataset(config.data, DataConfig)
    summary = {"folder": str(dataset.prepare())}
    for split in dataset.splits:
        summary[split] = f"{len(dataset.source(split)):,} examples"
    summary["inputs"] = ", ".join(f"{name} ({kind})" for name, kind in dataset.inputs.items())
    summary["targets"] = ", ".join(dataset.targets)
    # Datasets that are read in place have no checksum.
    if checksum := getattr(dataset, "checksum", None):
        summary["checksum"] = f"sha256 {checksum}"
    print_key_values(Console(soft_wrap=True, highlight=False), f"dataset {shared.name}", summary)


def _prepare_source(flags: absl_flags.FlagValues) -> None:
    """Prepares raw data and prints the report."""
    if not flags.output:
        raise UserError("--output", "is missing", "give a folder for the prepared data")
    if not 0 <= flags.workers <= _MAX_WORKERS:
        remedy = f"give a number of processes up to {_MAX_WORKERS}, or 0 for all cores"
        raise UserError("--workers", f"{flags.workers} is out of range", remedy)
    from mmjax.prepare.preparation import prepare
    from mmjax.prepare.runners import make_runner

    config = _parse_options(flags)
    aligner = _load_aligner(user_path(flags.alignment)) if flags.alignment else None
    with make_runner(flags.runner, flags.workers) as runner:
        result = prepare(config, user_path(flags.output), runner, _progress, flags.dry_run, aligner)
    if flags.json:
        print(to_json(result.report, indent=2))
    else:
        _print_result(result, flags.dry_run)


def _load_aligner(workdir: pathlib.Path) -> Any:
    """Loads the model of a run as a `PairScorer`."""
    from mmjax.evaluation.pair_embedder import PairEmbedder
    from mmjax.runs.run import restore
    from mmjax.training.state import parameters_hash

    experiment, state = restore(workdir)
    identity = f"{workdir} at step {int(state.step)}, parameters {parameters_hash(state.eval_parameters)[:16]}"
    return PairEmbedder(
        experiment.objective,
        state.eval_parameters,
        experiment.mesh,
        experiment.modalities,
        experiment.targets,
        identity,
        experiment.packing,
    )


def _parse_options(flags: absl_flags.FlagValues) -> Any:
    """Builds a `PrepareConfig` from the flags. Raises UserError if one is invalid."""
    from mmjax.config import build
    from mmjax.prepare.options import PrepareConfig, merge, parse_assignments

    section = parse_assignments(flags.set, "--set")
    values: dict[str, Any] = {"source": str(user_path(flags.source)) if flags.source.startswith("~") else flags.source}
    for name, kind in _LIST_FLAGS.items():
        if (text := flags[name].value) is not None:
            values[name] = _parse_pairs(name, text) if kind is dict else [item for item in text.split(",") if item]
    if flags.allow_outside:
        values["allow_outside"] = True
    for name in (*_TEXT_FLAGS, "folds", "seed", "train_tokenizer"):
        if flags[name].value is not None:
            values[name] = flags[name].value
    known = [field.name for field in dataclasses.fields(PrepareConfig)]
    for key in section:
        if key not in known:
            raise UserError(f"--set {key}", f"unknown key {key!r}", nearest(key, known))
    return build(PrepareConfig, merge(values, section), "mmjax prepare")


def _parse_pairs(name: str, text: str) -> dict[str, Any]:
    """Parses NAME=VALUE,NAME=VALUE; the values of `--splits` are numbers. Raises UserError."""
    pairs: dict[str, Any] = {}
    for item in text.split(","):
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"--{name}={text}", f"{item!r} is not NAME=VALUE", f"write --{name}=NAME=VALUE,NAME=VALUE")
        try:
            pairs[key] = float(value) if name == "splits" else value
        except ValueError:
            problem = f"{value!r} is not a number"
            raise UserError(f"--{name}={text}", problem, "write --splits=train=0.8,test=0.2") from None
    return pairs


@contextlib.contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Shows a progress bar on stderr."""
    from rich.console import Console

    from mmjax.reporting.progress import progress_bar

    with progress_bar(Console(stderr=True), title, total) as advance:
        yield advance


def _print_result(result: Any, dry_run: bool) -> None:
    """Prints the columns, the findings and the output files of a `PreparationResult`."""
    from rich.console import Console
    from rich.table import Table

    from mmjax.reporting.overview import print_key_values

    console = Console(soft_wrap=True, highlight=False)
    manifest, report = result.manifest, result.report
    summary = {"source": manifest["options"]["source"]}
    for role in ("inputs", "targets"):
        kinds = {name: kind if isinstance(kind, str) else kind["kind"] for name, kind in manifest[role].items()}
        sources = manifest["columns"]
        summary[role] = (
            ", ".join(f"{name} ({kind} from {'+'.join(sources[name])})" for name, kind in kinds.items()) or "–"
        )
    summary["rows"] = f"{report['rows']:,}, of which {report['dropped']:,} {'would be' if dry_run else 'are'} dropped"
    for split, count in report["splits"].items():
        summary[split] = f"{count:,} examples"
    print_key_values(console, "dataset", summary)
    if report["left_out"]:
        print_key_values(console, "left out", report["left_out"])
    if report["findings"]:
        table = Table(title="findings", title_justify="left", title_style="bold")
        for name in ("finding", "rows", "dropped", "example"):
            table.add_column(name, justify="right" if name in ("rows", "dropped") else "left", overflow="fold")
        for name, finding in report["findings"].items():
            example = finding["examples"][0]
            dropped = f"{finding['dropped']:,}" if finding["drops"] else "no, reported only"
            table.add_row(name, f"{finding['rows']:,}", dropped, f"{example['key']}: {example['why']}")
        Console(highlight=False).print(table)
    for note in report["notes"]:
        console.print(f"note: {note}", markup=False)
    for check, why in report["not_judged"].items():
        console.print(f"not judged: {check}, because {why}")
    files = {
        "data card": str(result.folder / "card.html"),
        "findings": str(result.folder / "findings.jsonl"),
    }
    if not dry_run:
        files |= {"data": str(result.folder), "checksum": f"sha256 {manifest['checksum']}"}
        if not result.fresh:
            files["note"] = "already prepared from the same source with the same options"
    else:
        files["next"] = "run the same command without --dry_run; rows are not examined again"
    print_key_values(console, "output files", files)
    if report["warning"]:
        console.print(f"warning: {report['warning']}", markup=False)
