"""From a source to finished shards, in steps of which each goes on where a process died before.

    list       the rows of the source                                   work/index.jsonl
    examine    decode and measure each, in chunks                       work/examined/*.npz
    decide     run the checks, share out the splits                     nothing: it is quick, and gives the same again
    write      the shards                                               work/shards/*
    finish     metadata, index, statistics, report, data card           OUTPUT, by one renaming

All of `work` lies in OUTPUT.partial until then. What is in a file there is finished: files are written beside their
place and renamed. Another source or other columns begin anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import itertools
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mmjax.errors import UserError
from mmjax.files import write_atomically, write_json
from mmjax.prepare import card, examine, report, shards, statistics, tokenizer
from mmjax.prepare.columns import Column, Layout, arrange
from mmjax.prepare.decide import Decisions, decide, drops
from mmjax.prepare.examined import Examined, PairScorer
from mmjax.prepare.job import Job, decisions_identity, identity, list_rows
from mmjax.prepare.kinds import KINDS
from mmjax.prepare.options import PrepareConfig
from mmjax.prepare.sources import open_source
from mmjax.prepare.splits import ordered

_SAMPLED = 2000
VERSION = 1


@dataclasses.dataclass(frozen=True)
class PreparationResult:
    """What a preparation came to.

    Attributes:
      folder: the finished dataset, or after a dry run the folder with the report.
      manifest: what `manifest.json` holds, or would hold; a dry run has no shards.
      report: what `report.json` holds.
      fresh: whether anything was done, and not only found done.
    """

    folder: pathlib.Path
    manifest: dict[str, Any]
    report: dict[str, Any]
    fresh: bool = True


Progress = Callable[[str, int], contextlib.AbstractContextManager[Callable[[], None]]]
"""(what is done, how many steps): a context that gives what to call after each step."""


@contextlib.contextmanager
def no_progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Shows nothing."""
    yield lambda: None


def prepare(
    config: PrepareConfig,
    output: pathlib.Path,
    runner: Any,
    progress: Progress = no_progress,
    dry_run: bool = False,
    aligner: PairScorer | None = None,
) -> PreparationResult:
    """Prepares a source, or goes on with it.

    Args:
      output: the folder of the finished dataset; OUTPUT.partial beside it is for the work.
      runner: what calls functions many times, of `mmjax.prepare.runners`.
      dry_run: whether to stop before anything is written but a report on what would be dropped.
      aligner: what says which pairs of inputs belong together.

    Raises:
      UserError: if the source or the options are wrong, or `output` holds something else.
    """
    drops(config)
    output = output.absolute()
    partial = output.with_name(output.name + ".partial")
    source = open_source(config.source, config.format)

    def run(title: str, function: Callable[..., None], calls: Sequence[tuple]) -> None:
        with progress(title, len(calls)) as advance:
            runner.run(function, calls, advance)

    with _locked(partial):
        sample = list(itertools.islice(source.rows(partial), _SAMPLED))
        layout = arrange(sample, source.kinds, config)
        for column in layout.columns:
            if column.name in shards.RESERVED:
                remedy = f"call it something else: --columns={column.name}_=COLUMN"
                raise UserError("--columns", f"{column.name!r} is a name of mmjax's own", remedy)
        if config.train_tokenizer:
            tokenizer.check(config.train_tokenizer, tokenized(layout))
        if aligner is not None:
            _check_pairs(aligner, [column.name for column in layout.columns if not column.target])
        rows, listing = list_rows(source, config, layout, partial / "listing")
        measured = identity(listing, layout, config)
        decided = decisions_identity(measured, config, aligner.identity if aligner else "")
        if output.exists():
            return _finished(output, decided, partial)
        work = _same_work(partial, measured)
        job = Job(source, layout, config, work, rows)
        todo = [(job, chunk) for chunk in range(job.chunks) if not examine.chunk_path(work, chunk).exists()]
        run("Examining", examine.examine_chunk, todo)
        examined = Examined(job, run, aligner)
        decisions = decide(examined)
        found = report.make(examined, decisions)
        if dry_run:
            report.write(partial, found, examined, decisions)
            write_atomically(partial / "card.html", card.make(examined, decisions, found, output.name))
            return PreparationResult(partial, _manifest(examined, decisions, decided, {}, output.name), found)
        plan = _plan(examined, decisions, output.name)
        _begin_shards(work, decided, job, decisions)
        run("Writing", shards.write_shard, [(job, name, part) for split in plan.values() for name, part in split])
        manifest = _finish(examined, decisions, decided, plan, found, output)
        shutil.rmtree(partial, ignore_errors=True)
        return PreparationResult(output, manifest, found)


def tokenized(layout: Layout) -> list[Column]:
    """The inputs for which a tokenizer can be trained."""
    return [column for column in layout.columns if KINDS[column.kind].tokenized]


def _check_pairs(aligner: PairScorer, inputs: list[str]) -> None:
    if not any(set(pair) <= set(inputs) for pair in aligner.pairs):
        compared = " or ".join(" with ".join(pair) for pair in aligner.pairs)
        problem = f"{aligner.identity} compares {compared}, and the inputs are {', '.join(inputs)}"
        raise UserError("--alignment", problem, "name the columns as the run does: --columns=NAME=COLUMN,…")


@contextlib.contextmanager
def _locked(partial: pathlib.Path) -> Iterator[None]:
    """Holds the folder of the work for one process. The system lets go of it when the process ends, however it ends."""
    try:
        partial.mkdir(parents=True, exist_ok=True)
        # In the folder that may be removed: who holds the lock on a file that is gone looks again.
        with (partial / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                problem = f"another process prepares {str(partial)!r}"
                raise UserError("--output", problem, "wait for it, or give another folder") from None
            try:
                yield
            except BaseException:
                _remove_if_empty(partial)
                raise
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        problem = f"{str(partial)!r} cannot be written: {error.strerror}"
        raise UserError("--output", problem, "give a folder that you may write") from None


def _remove_if_empty(partial: pathlib.Path) -> None:
    """Leaves nothing behind where nothing was done."""
    if not (partial / "work").exists():
        shutil.rmtree(partial, ignore_errors=True)


def _same_work(partial: pathlib.Path, measured: str) -> pathlib.Path:
    """The folder of the work that has been done on the same source and columns, with its list of rows."""
    work, noted = partial / "work", partial / "work" / "identity"
    if not noted.exists() or noted.read_text() != measured:
        shutil.rmtree(work, ignore_errors=True)
        (partial / "listing").rename(work)
        noted.write_text(measured)
    else:
        shutil.rmtree(partial / "listing")
    return work


def _finished(output: pathlib.Path, decided: str, partial: pathlib.Path) -> PreparationResult:
    try:
        manifest = json.loads((output / "manifest.json").read_text())
        found = json.loads((output / "report.json").read_text())
    except (OSError, ValueError):
        problem = f"{str(output)!r} is there, and no prepared data"
        raise UserError("--output", problem, "give a folder that is not there yet") from None
    if manifest.get("identity") != decided:
        problem = f"{str(output)!r} was prepared from another source or with other options"
        raise UserError("--output", problem, "give another folder, or remove this one") from None
    shutil.rmtree(partial, ignore_errors=True)
    return PreparationResult(output, manifest, found, fresh=False)


def _plan(examined: Examined, decisions: Decisions, name: str) -> dict[str, list[tuple[str, np.ndarray]]]:
    """{split: [(name of a shard's file, its rows)]}."""
    target = examined.job.config.shard_megabytes * 2**20
    plan = {}
    for split, rows in decisions.splits.items():
        ends = shards.cut(statistics.sizes(examined, rows), target)
        begins = [0, *ends[:-1]]
        plan[split] = [
            (shards.file_name(dataset_name(name), split, number, len(ends)), rows[begin:end])
            for number, (begin, end) in enumerate(zip(begins, ends, strict=True))
        ]
    return plan


def dataset_name(folder: str) -> str:
    """A name that TFDS allows: letters, digits and "_"."""
    name = re.sub(r"\W+", "_", folder.lower(), flags=re.ASCII).strip("_")
    return name if name[:1].isalpha() else f"data_{name}".rstrip("_")


def _begin_shards(work: pathlib.Path, decided: str, job: Job, decisions: Decisions) -> None:
    """Keeps the shards that were written by the same decisions, and notes what their writers have to know."""
    noted = work / "shards.identity"
    if not noted.exists() or noted.read_text() != decided:
        shutil.rmtree(work / "shards", ignore_errors=True)
        noted.write_text(decided)
    columns = {column.name: column.kind for column in job.layout.columns}
    write_json(work / "summary.json", {"columns": columns, "summary": decisions.summary})


def _manifest(
    examined: Examined, decisions: Decisions, decided: str, files: dict[str, list[dict[str, Any]]], name: str
) -> dict[str, Any]:
    job = examined.job
    digest = hashlib.sha256()
    for split in sorted(files):
        for entry in files[split]:
            digest.update(f"{split} {entry['examples']} {entry['records_sha256']} ".encode())
    targets = {
        column.name: {
            "kind": column.kind,
            **(decisions.summary[column.name] if column.kind == "label" else {}),
            **_facts(examined, decisions, column),
        }
        for column in job.targets
    }
    return {
        "version": VERSION,
        "name": dataset_name(name),
        "inputs": {column.name: column.kind for column in job.inputs},
        "facts": {column.name: _facts(examined, decisions, column) for column in job.inputs},
        "targets": targets,
        "splits": {split: {"examples": len(rows)} for split, rows in decisions.splits.items()},
        "shards": files,
        "checksum": digest.hexdigest() if files else "",
        "identity": decided,
        "options": dataclasses.asdict(job.config),
        "columns": {column.name: list(column.sources) for column in job.layout.columns},
    }


def _facts(examined: Examined, decisions: Decisions, column: Column) -> dict[str, Any]:
    """What the data decides of how a column becomes an array, from the first split alone, which is that of training."""
    rows = decisions.splits[next(iter(ordered(decisions.splits)))]
    numbers = {name: values[rows] for name, values in examined.numbers[column.name].items()}
    return examined.job.kinds[column.name].dataset_options(decisions.summary[column.name], numbers)


def _finish(
    examined: Examined,
    decisions: Decisions,
    decided: str,
    plan: dict[str, list[tuple[str, np.ndarray]]],
    found: dict[str, Any],
    output: pathlib.Path,
) -> dict[str, Any]:
    """Puts the finished dataset together beside its place, and moves it there."""
    work, name = examined.job.work, output.name
    folder = work / "finished"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files: dict[str, list[dict[str, Any]]] = {}
    for split, parts in plan.items():
        files[split] = []
        for file, _ in parts:
            facts = json.loads((work / "shards" / f"{file}.json").read_text())
            files[split].append({"file": file, **facts})
            # A second name for the file, so that an interruption here loses nothing.
            os.link(work / "shards" / file, folder / file)
    manifest = _manifest(examined, decisions, decided, files, name)
    if columns := tokenized(examined.job.layout) if examined.job.config.train_tokenizer else []:
        rows = decisions.splits[next(iter(ordered(decisions.splits)))]
        manifest["tokenizers"] = tokenizer.train(folder, examined, columns, rows)
    _write_tfds(folder, manifest, decisions)
    _write_index(folder, examined, decisions)
    write_json(folder / "statistics.json", statistics.statistics(examined, decisions.splits))
    report.write(folder, found, examined, decisions)
    write_atomically(folder / "card.html", card.make(examined, decisions, found, name))
    # Last, as its presence says that everything is there.
    write_json(folder / "manifest.json", manifest)
    folder.rename(output)
    return manifest


def _write_tfds(folder: pathlib.Path, manifest: dict[str, Any], decisions: Decisions) -> None:
    import tensorflow_datasets as tfds

    columns = manifest["inputs"] | {name: target["kind"] for name, target in manifest["targets"].items()}
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[entry["examples"] for entry in entries],
            num_bytes=sum(entry["bytes"] for entry in entries),
        )
        for split, entries in manifest["shards"].items()
    ]
    # TFDS prints to standard output, which belongs to the command's result.
    with contextlib.redirect_stdout(io.StringIO()):
        tfds.folder_dataset.write_metadata(
            data_dir=folder,
            features=shards.features(tfds, columns, decisions.summary),
            split_infos=infos,
            filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            check_data=False,
            description="Prepared by mmjax; see card.html.",
        )


def _write_index(folder: pathlib.Path, examined: Examined, decisions: Decisions) -> None:
    import pyarrow
    import pyarrow.parquet

    (folder / "index").mkdir()
    for split, rows in decisions.splits.items():
        table = pyarrow.table(statistics.index_columns(examined, decisions, rows))
        pyarrow.parquet.write_table(table, folder / "index" / f"{split}.parquet")
