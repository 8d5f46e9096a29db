"""Makes raw files into clean shards, or prepares the dataset of a recipe.

    mmjax prepare --source=photos/labels.csv --output=prepared/photos --dry_run
    mmjax prepare --source=photos/labels.csv --output=prepared/photos
    mmjax prepare --config=configs/digits.py

--source is a folder, a manifest (CSV, TSV, JSONL, Parquet), a tar file or a folder of them (WebDataset), tfds:NAME, a
folder of TFDS or of ArrayRecord files, or a bucket's address (gs://…, s3://…). What its columns are is found out, and
shown; --columns says it. Every row is decoded, measured and compared with the others. What is unreadable, empty, twice
there or in two splits is left out and listed, with the reason, in OUTPUT/findings.jsonl and on the page
OUTPUT/card.html; --dry_run only makes these, in OUTPUT.partial.

A command that was interrupted goes on when it is given again. To train on the result, see docs/own_data.md.

--alignment=RUN, the workdir of a run whose model was trained to tell pairs from others, finds inputs that do not belong
together. Without it they are found by a label, where there is one.

With --config nothing but the section `data` of the recipe matters. Training prepares too; this is for doing it once,
before many runs or on a machine without an accelerator.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags as absl_flags

from mmjax.commands.config_flag import define_config
from mmjax.errors import UserError, nearest

_LISTS = {"columns": dict, "splits": dict, "keep": list, "drop": list}
_TEXTS = ("format", "key", "split", "group", "stratify")


def define_flags(flags: absl_flags.FlagValues) -> None:
    define_config(flags, required=False)
    absl_flags.DEFINE_string("source", None, "what to prepare, instead of --config", flag_values=flags)
    absl_flags.DEFINE_string("output", None, "folder of the prepared data, which must not be there", flag_values=flags)
    absl_flags.DEFINE_bool("dry_run", False, "only find out what would be dropped, and say so", flag_values=flags)
    absl_flags.DEFINE_integer("workers", 0, "processes; as many as there are cores by default", flag_values=flags)
    absl_flags.DEFINE_string("runner", "local", "local, or a runner of Apache Beam: DirectRunner …", flag_values=flags)
    help_text = "workdir of a run with a contrastive task, which says which pairs of inputs do not belong together"
    absl_flags.DEFINE_string("alignment", None, help_text, flag_values=flags)
    absl_flags.DEFINE_bool("json", False, "print the report as one JSON object", flag_values=flags)
    describe = {
        "columns": "NAME=COLUMN or NAME=COLUMN:KIND, parted by commas: what is an input or a target",
        "splits": "NAME=SHARE, parted by commas, by default train=0.8,validation=0.1,test=0.1",
        "keep": "findings, parted by commas, whose rows are kept nonetheless",
        "drop": "findings, parted by commas, whose rows are dropped though they are suspicions",
        "format": "what the source is, where it could be several things",
        "key": "column with a name for each row",
        "split": "column with the split of each row",
        "group": "column whose values must not be in two splits, such as a speaker",
        "stratify": "label that all splits have equally often; the first by default",
    }
    for name in (*_LISTS, *_TEXTS):
        absl_flags.DEFINE_string(name, None, describe[name], flag_values=flags)
    help_text = "tokens of a tokenizer to train on each text of the training split, such as 8000"
    absl_flags.DEFINE_integer("train_tokenizer", None, help_text, flag_values=flags)
    absl_flags.DEFINE_integer("folds", None, "number of parts for cross-validation", flag_values=flags)
    absl_flags.DEFINE_integer("seed", None, "of all random choices, 0 by default", flag_values=flags)
    help_text = "KEY=VALUE of any other option, such as checks.image.blank=3; may be given several times"
    absl_flags.DEFINE_multi_string("set", [], help_text, flag_values=flags)


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    if (flags.config is None) == (flags.source is None):
        remedy = "give one of --config=configs/NAME.py and --source=PLACE --output=FOLDER"
        raise UserError("mmjax prepare", "needs a recipe or a source, and not both", remedy)
    if flags.config is not None:
        _prepare_recipe(flags)
    else:
        _prepare_source(flags)


def _prepare_recipe(flags: absl_flags.FlagValues) -> None:
    from rich.console import Console

    from mmjax.config import build
    from mmjax.datasets import make_dataset
    from mmjax.experiment import DataConfig, ExperimentConfig, plain
    from mmjax.reporting.overview import print_facts

    config = build(ExperimentConfig, plain(flags.config), "")
    shared, dataset = make_dataset(config.data, DataConfig)
    facts = {"folder": str(dataset.prepare())}
    for split in dataset.splits:
        facts[split] = f"{len(dataset.source(split)):,} examples"
    facts["inputs"] = ", ".join(f"{name} ({kind})" for name, kind in dataset.inputs.items())
    facts["targets"] = ", ".join(dataset.targets)
    # Not every dataset has one: what others made is read where it lies.
    if checksum := getattr(dataset, "checksum", None):
        facts["checksum"] = f"sha256 {checksum}"
    print_facts(Console(soft_wrap=True, highlight=False), f"the dataset {shared.name}", facts)


def _prepare_source(flags: absl_flags.FlagValues) -> None:
    if not flags.output:
        raise UserError("--output", "is missing", "give the folder that the prepared data should be in")
    if flags.workers < 0:
        raise UserError(
            "--workers", f"{flags.workers} is out of range", "give a number of processes, or 0 for all cores"
        )
    from mmjax.prepare.preparation import prepare
    from mmjax.prepare.runners import make_runner

    config = options(flags)
    aligner = _aligner(pathlib.Path(flags.alignment)) if flags.alignment else None
    with make_runner(flags.runner, flags.workers) as runner:
        done = prepare(config, pathlib.Path(flags.output), runner, _progress, flags.dry_run, aligner)
    if flags.json:
        print(json.dumps(done.report, indent=2))
    else:
        _print(done, flags.dry_run)


def _aligner(workdir: pathlib.Path) -> Any:
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


def options(flags: absl_flags.FlagValues) -> Any:
    """The `PrepareConfig` that the flags give. Raises UserError."""
    from mmjax.config import build
    from mmjax.prepare.options import PrepareConfig, merged, nested

    section = nested(flags.set, "--set")
    given: dict[str, Any] = {"source": flags.source}
    for name, kind in _LISTS.items():
        if (text := flags[name].value) is not None:
            given[name] = _pairs(name, text) if kind is dict else [word for word in text.split(",") if word]
    for name in (*_TEXTS, "folds", "seed", "train_tokenizer"):
        if flags[name].value is not None:
            given[name] = flags[name].value
    known = [field.name for field in dataclasses.fields(PrepareConfig)]
    for key in section:
        if key not in known:
            raise UserError(f"--set {key}", f"unknown key {key!r}", nearest(key, known))
    return build(PrepareConfig, merged(given, section), "mmjax prepare")


def _pairs(name: str, text: str) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for word in text.split(","):
        left, equals, right = word.partition("=")
        if not equals:
            raise UserError(f"--{name}={text}", f"{word!r} is not NAME=VALUE", f"write --{name}=NAME=VALUE,NAME=VALUE")
        try:
            pairs[left] = float(right) if name == "splits" else right
        except ValueError:
            raise UserError(
                f"--{name}={text}", f"{right!r} is no number", "write --splits=train=0.8,test=0.2"
            ) from None
    return pairs


@contextlib.contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar with what is done, the rate and the time that is left."""
    import rich.console
    import rich.progress

    console = rich.console.Console(stderr=True)
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("left"),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task(title, total=total)
        yield lambda: bars.advance(bar)


def _print(done: Any, dry_run: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from mmjax.reporting.overview import print_facts

    console = Console(soft_wrap=True, highlight=False)
    manifest, report = done.manifest, done.report
    facts = {"source": manifest["options"]["source"]}
    for role in ("inputs", "targets"):
        kinds = {name: kind if isinstance(kind, str) else kind["kind"] for name, kind in manifest[role].items()}
        sources = manifest["columns"]
        facts[role] = (
            ", ".join(f"{name} ({kind} from {'+'.join(sources[name])})" for name, kind in kinds.items()) or "–"
        )
    facts["rows"] = f"{report['rows']:,}, of which {report['dropped']:,} {'would be' if dry_run else 'are'} dropped"
    for split, count in report["splits"].items():
        facts[split] = f"{count:,} examples"
    print_facts(console, "what the source holds", facts)
    if report["findings"]:
        table = Table(title="what was found", title_justify="left", title_style="bold")
        for name in ("finding", "rows", "dropped", "for example"):
            table.add_column(name, justify="right" if name in ("rows", "dropped") else "left", overflow="fold")
        for name, found in report["findings"].items():
            example = found["examples"][0]
            dropped = f"{found['dropped']:,}" if found["drops"] else "no, reported only"
            table.add_row(name, f"{found['rows']:,}", dropped, f"{example['key']}: {example['why']}")
        Console(highlight=False).print(table)
    for check, why in report["not_judged"].items():
        console.print(f"not judged: {check}, because {why}")
    where = {
        "page": str(done.folder / "card.html"),
        "findings": str(done.folder / "findings.jsonl"),
    }
    if not dry_run:
        where |= {"data": str(done.folder), "checksum": f"sha256 {manifest['checksum']}"}
        if not done.fresh:
            where["already"] = "it was prepared before, from the same source with the same options"
    else:
        where["next"] = "the same command without --dry_run; what was examined need not be examined again"
    print_facts(console, "where everything lies", where)
