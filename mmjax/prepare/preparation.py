"""Prepares a source in resumable steps: list, examine, decide, write, finish.

    list       list the rows of the source                              work/index.jsonl
    examine    decode and measure each row, in chunks                   work/examined/*.npz
    decide     run the checks, split the rows                           no file: fast and deterministic
    write      write the shards                                         work/shards/*
    finish     metadata, index, statistics, report, data card           OUTPUT, renamed into place

`work` is in OUTPUT.partial. Each file is written under a temporary name and renamed, so a file that exists is complete.
The work is discarded if `examine_fingerprint` changes, for example because the source or the columns changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mmjax.errors import UserError
from mmjax.files import read_json, write_atomically, write_json
from mmjax.prepare import card, examine, report, shards, statistics, tokenizer
from mmjax.prepare.columns import KEYS, Column, Layout, infer_layout
from mmjax.prepare.decide import Decisions, decide, effective_drops
from mmjax.prepare.examined import Examined, PairScorer
from mmjax.prepare.job import Job, decision_fingerprint, examine_fingerprint, list_rows
from mmjax.prepare.kinds import KINDS
from mmjax.prepare.options import PrepareConfig
from mmjax.prepare.profile import profile_rows
from mmjax.prepare.runners import Runner
from mmjax.prepare.sources import open_source
from mmjax.prepare.splits import sort_splits

VERSION = 1
"""Version of `manifest.json`."""

Plan = dict[str, list[tuple[str, np.ndarray]]]
"""`{split: [(shard file name, row indices)]}`."""


@dataclasses.dataclass(frozen=True)
class PreparationResult:
    """Result of a preparation.

    Attributes:
      folder: finished dataset, or the folder of the report after a dry run.
      manifest: content of `manifest.json`; without shards after a dry run.
      report: content of `report.json`.
      fresh: False if the dataset was already finished.
    """

    folder: pathlib.Path
    manifest: dict[str, Any]
    report: dict[str, Any]
    fresh: bool = True


Progress = Callable[[str, int], contextlib.AbstractContextManager[Callable[[], None]]]
"""(title, number of steps) -> context manager that yields a function to call after each step."""


@contextlib.contextmanager
def no_progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Implements `Progress` without output."""
    yield lambda: None


def prepare(
    config: PrepareConfig,
    output: pathlib.Path,
    runner: Runner,
    progress: Progress = no_progress,
    dry_run: bool = False,
    aligner: PairScorer | None = None,
) -> PreparationResult:
    """Prepares a source, or resumes an interrupted preparation.

    Args:
      config: options.
      output: folder of the finished dataset. Unfinished work is in OUTPUT.partial beside it.
      runner: runs the tasks, see `mmjax.prepare.runners`.
      progress: shows progress.
      dry_run: writes only the report and the data card.
      aligner: model that scores pairs of inputs, for the check "misaligned".

    Raises:
      UserError: if the source or an option is invalid, or `output` holds other data.
    """
    effective_drops(config)
    output = output.absolute()
    partial = output.with_name(output.name + ".partial")
    source = open_source(config.source, config.format, config.allow_outside)

    def run_tasks(title: str, function: Callable[..., None], calls: Sequence[tuple]) -> None:
        with progress(title, len(calls)) as advance:
            runner.run(function, calls, advance)

    with _locked(partial):
        profiles, unique = profile_rows(source.rows(partial), KEYS)
        layout = infer_layout(profiles, unique, source.kinds, config, source.left_out)
        for column in layout.columns:
            if column.name in shards.RESERVED:
                remedy = f"rename the column: --columns={column.name}_=COLUMN"
                raise UserError("--columns", f"{column.name!r} is a reserved name", remedy)
        if config.train_tokenizer:
            tokenizer.check_options(config.train_tokenizer, tokenized_inputs(layout))
        if aligner is not None:
            _check_pairs(aligner, [column.name for column in layout.columns if not column.target])
        num_rows, listing = list_rows(source, config, layout, partial / "listing")
        examined_hash = examine_fingerprint(listing, layout, config)
        decision_hash = decision_fingerprint(examined_hash, config, aligner.identity if aligner else "")
        if output.exists():
            return _load_finished(output, decision_hash, partial)
        job = Job(source, layout, config, _reuse_work(partial, examined_hash), num_rows)
        chunks = [c for c in range(job.num_chunks) if not examine.chunk_path(job.work, c).exists()]
        run_tasks("Examining", examine.examine_chunk, [(job, chunk) for chunk in chunks])
        examined = Examined(job, run_tasks, aligner)
        decisions = decide(examined)
        report_content = report.make(examined, decisions)
        if dry_run:
            report.write(partial, report_content, examined, decisions)
            write_atomically(partial / "card.html", card.make(examined, decisions, report_content, output.name))
            manifest = _manifest(examined, decisions, decision_hash, {}, output.name)
            return PreparationResult(partial, manifest, report_content)
        plan = _plan(examined, decisions, output.name)
        _begin_shards(decision_hash, job, decisions)
        run_tasks("Writing", shards.write_shard, [(job, *shard) for split in plan.values() for shard in split])
        manifest = _finish(examined, decisions, decision_hash, plan, report_content, output)
        shutil.rmtree(partial, ignore_errors=True)
        return PreparationResult(output, manifest, report_content)


def tokenized_inputs(layout: Layout) -> list[Column]:
    """Returns the inputs that a tokenizer can be trained on."""
    return [column for column in layout.columns if KINDS[column.kind].tokenized]


def _check_pairs(aligner: PairScorer, inputs: list[str]) -> None:
    if not any(set(pair) <= set(inputs) for pair in aligner.pairs):
        compared = " or ".join(" with ".join(pair) for pair in aligner.pairs)
        problem = f"{aligner.identity} compares {compared}, but the inputs are {', '.join(inputs)}"
        raise UserError("--alignment", problem, "name the columns as in that run: --columns=NAME=COLUMN,…")


@contextlib.contextmanager
def _locked(partial: pathlib.Path) -> Iterator[None]:
    """Locks the work folder for this process. The operating system releases the lock when the process ends."""
    try:
        partial.mkdir(parents=True, exist_ok=True)
        # The owner may finish and remove the folder while another process locks this file. That process then finds the
        # complete output.
        with (partial / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                problem = f"another process is preparing {str(partial)!r}"
                raise UserError("--output", problem, "wait until it ends, or give another folder") from None
            try:
                yield
            except BaseException:
                # Leave nothing behind if no work was done.
                if not (partial / "work").exists():
                    shutil.rmtree(partial, ignore_errors=True)
                raise
    except OSError as error:
        # Sources report their own errors.
        problem = f"cannot write {str(partial)!r}: {error.strerror or error}"
        raise UserError("--output", problem, "give another folder, or free some space") from None


def _reuse_work(partial: pathlib.Path, fingerprint: str) -> pathlib.Path:
    """Returns the work folder. If the fingerprint has changed, deletes the old work and keeps only the new listing."""
    work, fingerprint_file = partial / "work", partial / "work" / "identity"
    if not fingerprint_file.exists() or fingerprint_file.read_text() != fingerprint:
        shutil.rmtree(work, ignore_errors=True)
        (partial / "listing").rename(work)
        fingerprint_file.write_text(fingerprint)
    else:
        shutil.rmtree(partial / "listing")
    return work


def _load_finished(output: pathlib.Path, fingerprint: str, partial: pathlib.Path) -> PreparationResult:
    """Loads a finished dataset. Raises UserError if it is not a dataset or has another fingerprint."""
    try:
        manifest = read_json(output / "manifest.json")
        report_content = read_json(output / "report.json")
    except (OSError, ValueError):
        problem = f"{str(output)!r} exists but is not a prepared dataset"
        raise UserError("--output", problem, "give a folder that does not exist") from None
    if not isinstance(manifest, dict) or manifest.get("identity") != fingerprint:
        problem = f"{str(output)!r} was prepared from another source or with other options"
        raise UserError("--output", problem, "give another folder, or remove this one") from None
    shutil.rmtree(partial, ignore_errors=True)
    return PreparationResult(output, manifest, report_content, fresh=False)


def _plan(examined: Examined, decisions: Decisions, name: str) -> Plan:
    """Assigns the rows of each split to shards."""
    target = examined.job.config.shard_megabytes * 2**20
    plan = {}
    for split, rows in decisions.splits.items():
        ends = shards.shard_ends(statistics.record_sizes(examined, rows), target)
        starts = [0, *ends[:-1]]
        plan[split] = [
            (shards.file_name(dataset_name(name), split, shard, len(ends)), rows[start:end])
            for shard, (start, end) in enumerate(zip(starts, ends, strict=True))
        ]
    return plan


def dataset_name(folder: str) -> str:
    """Converts a folder name to a TFDS dataset name: letters, digits and "_"."""
    name = re.sub(r"\W+", "_", folder.lower(), flags=re.ASCII).strip("_")
    return name if name[:1].isalpha() else f"data_{name}".rstrip("_")


def _begin_shards(fingerprint: str, job: Job, decisions: Decisions) -> None:
    """Deletes shards of another fingerprint, and writes the summary that `shards.write_shard` reads."""
    fingerprint_file = job.work / "shards.identity"
    if not fingerprint_file.exists() or fingerprint_file.read_text() != fingerprint:
        shutil.rmtree(job.work / "shards", ignore_errors=True)
        fingerprint_file.write_text(fingerprint)
    columns = {column.name: column.kind for column in job.layout.columns}
    write_json(job.work / "summary.json", {"columns": columns, "summary": decisions.summary})


def _manifest(
    examined: Examined, decisions: Decisions, fingerprint: str, files: dict[str, list[dict[str, Any]]], name: str
) -> dict[str, Any]:
    """Builds the content of `manifest.json`. `files` is {split: descriptions of its shards}, {} after a dry run."""
    job = examined.job
    digest = hashlib.sha256()
    for split in sorted(files):
        for entry in files[split]:
            digest.update(f"{split} {entry['examples']} {entry['records_sha256']} ".encode())
    targets = {
        column.name: {
            "kind": column.kind,
            **(decisions.summary[column.name] if KINDS[column.kind].has_classes else {}),
            **_dataset_options(examined, decisions, column),
        }
        for column in job.targets
    }
    return {
        "version": VERSION,
        "name": dataset_name(name),
        "inputs": {column.name: column.kind for column in job.inputs},
        "facts": {column.name: _dataset_options(examined, decisions, column) for column in job.inputs},
        "reduced": {
            column.name: {"options": job.config.reduce[column.kind], "summary": decisions.summary[column.name]}
            for column in job.inputs
            if job.config.reduce.get(column.kind)
        },
        "targets": targets,
        "splits": {split: {"examples": len(rows)} for split, rows in decisions.splits.items()},
        "shards": files,
        "checksum": digest.hexdigest() if files else "",
        "identity": fingerprint,
        "options": dataclasses.asdict(job.config),
        "columns": {column.name: list(column.sources) for column in job.layout.columns},
    }


def _training_rows(decisions: Decisions) -> np.ndarray:
    """Returns the rows of the training split or, if there is none, of the first split of `sort_splits`."""
    return decisions.splits[sort_splits(decisions.splits)[0]]


def _dataset_options(examined: Examined, decisions: Decisions, column: Column) -> dict[str, Any]:
    """Computes the data-dependent options of a column, such as mean and std, on the training split only."""
    rows = _training_rows(decisions)
    measures = {name: values[rows] for name, values in examined.measures[column.name].items()}
    return examined.job.kinds[column.name].dataset_options(decisions.summary[column.name], measures)


def _finish(
    examined: Examined,
    decisions: Decisions,
    fingerprint: str,
    plan: Plan,
    report_content: dict[str, Any],
    output: pathlib.Path,
) -> dict[str, Any]:
    """Assembles the dataset in a temporary folder and renames it to `output`. Returns the manifest."""
    work, name = examined.job.work, output.name
    folder = work / "finished"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files: dict[str, list[dict[str, Any]]] = {}
    for split, split_shards in plan.items():
        files[split] = []
        for file, _ in split_shards:
            description = json.loads((work / "shards" / f"{file}.json").read_text())
            files[split].append({"file": file, **description})
            # Hard links, so that an interruption here loses no shard.
            os.link(work / "shards" / file, folder / file)
    manifest = _manifest(examined, decisions, fingerprint, files, name)
    if columns := tokenized_inputs(examined.job.layout) if examined.job.config.train_tokenizer else []:
        manifest["tokenizers"] = tokenizer.train(folder, examined, columns, _training_rows(decisions))
    _write_tfds(folder, manifest, decisions)
    _write_index(folder, examined, decisions)
    write_json(folder / "statistics.json", statistics.statistics(examined, decisions.splits))
    report.write(folder, report_content, examined, decisions)
    write_atomically(folder / "card.html", card.make(examined, decisions, report_content, name))
    # Write the manifest last: it marks the dataset as complete.
    write_json(folder / "manifest.json", manifest)
    folder.rename(output)
    return manifest


def _write_tfds(folder: pathlib.Path, manifest: dict[str, Any], decisions: Decisions) -> None:
    """Writes `dataset_info.json` and `features.json`."""
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
    # TFDS prints to stdout, which is reserved for the result of the command.
    with contextlib.redirect_stdout(io.StringIO()):
        tfds.folder_dataset.write_metadata(
            data_dir=folder,
            features=shards.tfds_features(tfds, columns, decisions.summary),
            split_infos=infos,
            filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            check_data=False,
            description="Prepared by mmjax; see card.html.",
        )


def _write_index(folder: pathlib.Path, examined: Examined, decisions: Decisions) -> None:
    """Writes `index/SPLIT.parquet`, one row per example."""
    import pyarrow
    import pyarrow.parquet

    (folder / "index").mkdir()
    for split, rows in decisions.splits.items():
        table = pyarrow.table(statistics.index_columns(examined, decisions, rows))
        pyarrow.parquet.write_table(table, folder / "index" / f"{split}.parquet")
