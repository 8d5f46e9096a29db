"""Training and evaluation of a run in a workdir."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import pathlib
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
from rich.console import Console

from mmjax.config import build
from mmjax.data.dataset import Dataset, check_split
from mmjax.datasets import Prepared, make_dataset
from mmjax.datasets.recorded import OtherData, RecordedDataset, describe
from mmjax.errors import RunError, UserError, nearest
from mmjax.evaluation import EvaluationHook, subset_name
from mmjax.evaluation.evaluator import EvaluationStopped
from mmjax.experiment import CHANGEABLE_ON_RESUME, DataConfig, Experiment, ExperimentConfig, schedule_changes
from mmjax.files import user_path, write_atomically, write_json
from mmjax.host.interruption import Interruption, handle_signals
from mmjax.host.streams import replace_unencodable
from mmjax.processes import Watchdog, agree_or_raise, exchange, watchdog
from mmjax.reporting.overview import (
    count_by_component,
    count_elements,
    print_key_values,
    print_ledger,
    print_metrics,
    print_subsets,
)
from mmjax.reporting.progress import progress_bar
from mmjax.runs.lock import locked
from mmjax.runs.storage import report_storage_errors
from mmjax.runs.workdir import (
    check_same_config,
    check_same_data,
    check_same_files,
    provenance,
    read_config,
    read_record,
    write_config,
)
from mmjax.sharding import MeshConfig, format_mesh, unsharded_parameters
from mmjax.training.checkpoint import CheckpointHook, Checkpoints
from mmjax.training.hooks.log import LogHook
from mmjax.training.hooks.skipped_steps import SkippedStepsHook
from mmjax.training.hooks.watch import PhaseHook, WatchdogHook
from mmjax.training.ledger import Ledger, timed, timed_batches
from mmjax.training.loop import Hook, Loop
from mmjax.training.metrics_log import MetricsLog, read_rows
from mmjax.training.state import TrainState, parameters_finite, parameters_hash


def train(raw: Any, workdir: pathlib.Path, console: Console | None = None, *, earlier: float = 0.0) -> dict[str, Any]:
    """Trains a recipe and evaluates it. Resumes from the workdir's newest checkpoint, if any.

    Args:
      raw: the recipe, a `ConfigDict` or a dict.
      workdir: folder of the run, created if it does not exist.
      console: output of progress and tables; by default, only process 0 prints.
      earlier: seconds since the process started, for the ledger of wall time.

    Returns:
      Contents of `result.json`.

    Raises:
      UserError: if the recipe or the workdir is invalid, before writing any file.
      Restart: after SIGTERM or SIGHUP, once a checkpoint is saved.
      Interrupted: after Ctrl-C, once a checkpoint is saved.
      RunError: if too many steps had gradients that are not finite, or the trained parameters are not finite.
    """
    replace_unencodable()
    with watchdog() as watch, handle_signals() as interruption, Ledger(earlier) as ledger:
        return _check_and_train(raw, user_path(workdir), console, watch, interruption, ledger)


def _check_and_train(
    raw: Any,
    workdir: pathlib.Path,
    console: Console | None,
    watch: Watchdog,
    interruption: Interruption,
    ledger: Ledger,
) -> dict[str, Any]:
    """Checks the config, the data and the workdir, locks the workdir, and trains."""
    started = time.perf_counter()
    writes = jax.process_index() == 0
    console = console or Console(quiet=not writes)
    # No process writes before all have checked; if one process rejects the config, all exit.
    with agree_or_raise("the check of the config and the workdir"):
        experiment = Experiment(raw)
        check_same_config(workdir, experiment.raw, CHANGEABLE_ON_RESUME)
        check_same_files(workdir, experiment.modalities)
    with agree_or_raise("the preparation of the data"):
        _check_steps(workdir, experiment)
        experiment.dataset.prepare()
        examples = _check_examples(experiment)
        record = describe(experiment.dataset)
        check_same_data(workdir, record)
    with report_storage_errors(workdir), contextlib.ExitStack() as stack:
        previous = experiment.raw
        with agree_or_raise("the lock of the workdir"):
            if writes:
                stack.enter_context(locked(workdir, console))
                # Check again: another process may have trained here before this one got the lock.
                check_same_config(workdir, experiment.raw, CHANGEABLE_ON_RESUME)
                check_same_data(workdir, record)
                previous = read_config(workdir) if (workdir / "config.json").exists() else experiment.raw
                write_config(workdir, experiment.raw, experiment.modalities, record)
                ledger.open(workdir / "ledger.json")
        return _train(experiment, previous, workdir, console, examples, started, watch, interruption, ledger)


def _train(
    experiment: Experiment,
    previous: dict[str, Any],
    workdir: pathlib.Path,
    console: Console,
    examples: int,
    started: float,
    watch: Watchdog,
    interruption: Interruption,
    ledger: Ledger,
) -> dict[str, Any]:
    """Trains and evaluates in a locked and checked workdir; `previous` is the config that it had before."""
    writes = jax.process_index() == 0
    checkpoints = Checkpoints(workdir, experiment.config.checkpoint)
    state, restored = _first_state(experiment, checkpoints)
    ledger.resume(restored or 0)
    if writes:
        _print_overview(console, experiment, examples, checkpoints, restored, workdir, interruption.installed)
        for line in schedule_changes(previous, experiment.raw, restored) if restored else []:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    _write_parameters(workdir, state, writes)
    # Hooks of all processes read metrics.jsonl, so process 0 first removes the rows after the restored checkpoint.
    with agree_or_raise("the repair of metrics.jsonl"):
        log = MetricsLog(workdir, restored or 0) if writes else None
    with watch.limits(
        experiment.mesh_config.heartbeat_timeout, experiment.mesh_config.stall, experiment.config.watchdog
    ):
        hooks = _hooks(experiment, checkpoints, log, workdir, console, watch, interruption)
        loop = Loop(state, experiment.config.train.steps, hooks)
        batches = experiment.train_batches(loop.step)
        try:
            with timed("step"):  # what the loop does beside the other parts: dispatch, waits for the device, logging
                state = loop.run(experiment.compile_step(), timed_batches(watch.phases.batches(batches)))
        finally:
            watch.phases.enter(None)
            batches.close()
            if log:
                log.close()
        trained = time.perf_counter() - started
        if loop.stop_reason:
            console.print(f"stopped at step {loop.step}: {loop.stop_reason.message}")
            if loop.stop_reason.error is not None:
                checkpoints.close()
                where = f"stopped at step {loop.step} with a checkpoint"
                raise loop.stop_reason.error(f"{where}; run the same command to resume at step {loop.step}")
        if not parameters_finite(state.parameters, experiment.mesh):
            raise RunError(f"the parameters after step {loop.step} are not finite; lower the learning rate")
        evaluated, evaluated_step = _evaluated_state(experiment, checkpoints, state, workdir)
        watch.phases.enter("evaluation")
        result = {
            "seed": experiment.config.seed,
            "steps": loop.step,
            "evaluated_step": evaluated_step,
            "parameters": count_elements(state.parameters),
            "parameters_hash": parameters_hash(state.parameters),
            **evaluate_splits(
                experiment,
                evaluated.eval_parameters,
                experiment.config.evaluate.splits,
                console,
                step=evaluated_step,
            ),
            **provenance(),
            "broken_records": _broken_records(experiment),
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "seconds": {"train": round(trained, 1), "all": round(time.perf_counter() - started, 1)},
        }
        watch.phases.enter("save")
        checkpoints.close()
        watch.phases.enter(None)
    result["ledger"] = ledger.summary()
    if writes:
        write_json(workdir / "result.json", result)
        _print_outputs(console, workdir, result)
    return result


def restore(
    workdir: pathlib.Path, mesh: MeshConfig | None = None, dataset: Dataset | None = None
) -> tuple[Experiment, TrainState]:
    """Restores a run's best or latest checkpoint, selected by `evaluate.checkpoint`, on this machine's devices.

    Args:
      workdir: folder of the run.
      mesh: mesh over all devices; by default `MeshConfig()` over the largest number of devices that divides the
        batch sizes.
      dataset: data to evaluate on; by default a `RecordedDataset`, without examples, which suffices for predictions.

    Returns:
      experiment, state.

    Raises:
      UserError: if the workdir has no run or no checkpoint.
    """
    workdir = user_path(workdir)
    raw = read_config(workdir)
    missing = UserError("--workdir", f"{workdir} has no checkpoint", "train first, or lower checkpoint.every")
    if not (workdir / "checkpoints").is_dir():
        raise missing
    if dataset is None:
        dataset = RecordedDataset(read_record(workdir))
    config = build(ExperimentConfig, raw, "")
    experiment = Experiment(raw, None if mesh else _fitting_devices(config), mesh or MeshConfig(), dataset)
    checkpoints = Checkpoints(workdir, experiment.config.checkpoint, read_only=True)
    best = experiment.config.evaluate.checkpoint == "best"
    if best and checkpoints.steps:
        _check_best(experiment, checkpoints, workdir)
    restored = checkpoints.restore_newest(experiment.abstract_state, _warn, best=best)
    checkpoints.close()
    if restored is None:
        raise missing
    return experiment, restored[0]


def _warn(message: str) -> None:
    """Prints a message of process 0 to standard error, because standard output is for results."""
    if jax.process_index() == 0:
        print(f"mmjax: {message}", file=sys.stderr)


def evaluate(
    workdir: pathlib.Path,
    splits: Sequence[str] | None = None,
    *,
    data: str | None = None,
    without: Collection[str] = (),
    all_subsets: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Evaluates a trained run and prints its metrics as tables.

    Args:
      workdir: folder of the run.
      splits: splits to evaluate; by default the run's `evaluate.splits`.
      data: folder of other prepared data of the same schema; by default the data that the run was trained on.
      without: inputs to mask in every example.
      all_subsets: evaluate every subset of the inputs instead.
      console: output of the tables; by default, only process 0 prints.

    Returns:
      {"step", "without", split: metrics}, with "subsets" and "ceilings" as in `result.json` if `all_subsets`.

    Raises:
      UserError: if the workdir has no checkpoint, the data is not the run's, or a split or an input does not exist.
    """
    workdir = user_path(workdir)
    console = console or Console(quiet=jax.process_index() != 0)
    experiment, state = restore(workdir, dataset=_evaluation_data(workdir, data))
    splits = tuple(experiment.config.evaluate.splits if splits is None else splits)
    for split in splits:
        check_split(split, experiment.dataset.splits, "--split")
    for name in without:
        if name not in experiment.specs:
            raise UserError("--without", f"the run has no input {name!r}", nearest(name, experiment.specs))
    if set(without) == set(experiment.specs):
        raise UserError("--without", f"{','.join(without)} masks all inputs", "keep at least one input")
    result: dict[str, Any] = {"step": int(state.data_step), "without": sorted(set(without))}
    if all_subsets:
        step = result["step"]
        return result | evaluate_splits(experiment, state.eval_parameters, splits, console, all_subsets=True, step=step)
    present = subset_name([name for name in experiment.specs if name not in without])
    for split in splits:
        with progress_bar(console, f"evaluating {split}", experiment.num_evaluation_batches(split)) as advance:
            result[split] = experiment.evaluator.run(
                state.eval_parameters, split, without, step=result["step"], advance=advance
            )
        print_metrics(console, f"{split}, step {result['step']:,}, with {present}", result[split])
    return result


def _evaluation_data(workdir: pathlib.Path, path: str | None) -> Dataset:
    """Opens the run's own data, or prepared data of the same schema in the folder `path`."""
    raw = read_config(workdir)
    if path is None:
        dataset = make_dataset(raw["data"], DataConfig)[1]
        dataset.prepare()
        check_same_data(workdir, describe(dataset))
        return dataset
    return OtherData(RecordedDataset(read_record(workdir)), Prepared(Prepared.Config(path=path)))


def evaluate_splits(
    experiment: Experiment,
    parameters: Any,
    splits: tuple[str, ...],
    console: Console,
    all_subsets: bool | None = None,
    *,
    step: int = 0,
) -> dict[str, dict[str, Any]]:
    """Evaluates each split and prints a table of its metrics.

    Args:
      experiment: experiment of the run.
      parameters: parameters of the model.
      splits: splits to evaluate.
      console: output of the tables.
      all_subsets: evaluate every subset of the inputs; by default `evaluate.subsets`.
      step: data step of the parameters.

    Returns:
      {split: metrics with all inputs, "subsets": {split: {subset: metrics}}, "ceilings": {split: upper bounds}}.
    """
    result: dict[str, dict[str, Any]] = {"subsets": {}, "ceilings": {}}
    all_subsets = experiment.config.evaluate.subsets if all_subsets is None else all_subsets
    for split in splits:
        all_inputs = subset_name(experiment.inputs_of(split))
        with progress_bar(console, f"evaluating {split}", experiment.num_evaluation_batches(split)) as advance:
            if all_subsets and len(experiment.specs) > 1:
                table = experiment.evaluate_subsets(parameters, split, step=step, advance=advance)
            else:
                table = {all_inputs: experiment.evaluator.run(parameters, split, step=step, advance=advance)}
        row = table[all_inputs]
        ceilings = experiment.ceilings(split)
        result[split], result["subsets"][split], result["ceilings"][split] = row, table, ceilings
        shown = [metric for metric in experiment.primary_metrics if metric in row]
        print_subsets(console, f"{split}: metrics by subset of the inputs", table, ceilings, shown)
    return result


def _fitting_devices(config: ExperimentConfig) -> list[jax.Device]:
    """Returns the largest number of devices that divides the batch sizes; training may have used another number."""
    devices = jax.devices()
    if jax.process_count() > 1:
        return devices
    train = config.train
    microbatches = max(train.accumulate, _positive(train.estimator, "microbatches"))
    evaluated = config.evaluate.batch_size or train.batch_size
    rows = math.gcd(train.batch_size // microbatches, evaluated) // _positive(config.data.get("packing"), "slots")
    return devices[: max(count for count in range(1, len(devices) + 1) if rows % count == 0)]


def _positive(section: Any, key: str) -> int:
    """Returns a positive number in a section that is not checked yet, 1 by default."""
    value = section.get(key, 1) if isinstance(section, Mapping) else 1
    return int(value) if isinstance(value, (int, float)) and value >= 1 else 1


def _check_steps(workdir: pathlib.Path, experiment: Experiment) -> None:
    """Raises a UserError if the workdir has a checkpoint after `train.steps`."""
    folder, steps = workdir / "checkpoints", experiment.config.train.steps
    saved = [int(child.name) for child in folder.iterdir() if child.name.isdigit()] if folder.is_dir() else []
    step = max(saved, default=0)
    if step > steps:
        problem = f"{steps} is less than step {step} of the newest checkpoint in {workdir}"
        raise UserError("train.steps", problem, f"give at least {step}, or another workdir")


def _check_examples(experiment: Experiment) -> int:
    """Returns the number of training examples. Raises a UserError if a split of the run is empty."""
    config = experiment.config.evaluate
    for split in (*config.splits, *(("validation",) if config.every else ())):
        experiment.pipeline.size(split)
    experiment.check_watched_targets()
    return experiment.pipeline.size("train")


def _first_state(experiment: Experiment, checkpoints: Checkpoints) -> tuple[TrainState, int | None]:
    """Restores the newest checkpoint or initialises the state. Returns the state and the restored step, if any."""
    return checkpoints.restore_newest(experiment.abstract_state, _warn) or (experiment.init_state(), None)


def _check_best(experiment: Experiment, checkpoints: Checkpoints, workdir: pathlib.Path) -> None:
    """Raises a RunError if `evaluate.checkpoint` is "best" and no checkpoint is."""
    if checkpoints.best() is None:
        problem = f"no checkpoint in {workdir} has a finite {experiment.config.checkpoint.best}"
        raise RunError(f"{problem}, which evaluate.checkpoint = 'best' needs")


def _evaluated_state(
    experiment: Experiment, checkpoints: Checkpoints, state: TrainState, workdir: pathlib.Path
) -> tuple[TrainState, int]:
    """Returns the state that `evaluate.checkpoint` selects, and its data step; `state` is the last one."""
    if experiment.config.evaluate.checkpoint == "best":
        _check_best(experiment, checkpoints, workdir)
        restored = checkpoints.restore_newest(experiment.abstract_state, _warn, best=True)
        if restored is not None:
            return restored
    return state, int(state.data_step)


def _hooks(
    experiment: Experiment,
    checkpoints: Checkpoints,
    log: MetricsLog | None,
    workdir: pathlib.Path,
    console: Console,
    watch: Watchdog,
    interruption: Interruption,
) -> list[Hook]:
    config = experiment.config
    history = read_rows(workdir) if (workdir / "metrics.jsonl").exists() else []
    hooks: list[Hook] = [
        LogHook(config.log, log, console, experiment.schedule, experiment.examples_per_step),
        # Comes before the hooks that use the state, since it may replace the state.
        SkippedStepsHook(
            config.train.max_skipped,
            config.train.rollback,
            checkpoints,
            experiment.abstract_state,
            lambda step: experiment.pipeline.ids_at("train", config.train.batch_size, step).tolist(),
            console,
        ),
        PhaseHook(EvaluationHook(experiment.evaluator, config.evaluate.every, log, history), "evaluation", watch),
    ]
    hooks += [cls(options, history) for cls, options in experiment.hooks]
    save = CheckpointHook(checkpoints, functools.partial(_flush, workdir, log), interruption)
    hooks += [PhaseHook(save, "save", watch), WatchdogHook(watch)]
    experiment.evaluator.after_batch = functools.partial(_after_evaluation_batch, watch, interruption)
    return hooks


def _after_evaluation_batch(watch: Watchdog, interruption: Interruption) -> None:
    """Reports progress, and stops the evaluation of a single process if a signal asks the run to save and stop."""
    watch.phases.advance()
    if interruption.requested is not None and jax.process_count() == 1:
        raise EvaluationStopped("stopped during an evaluation; run the same command again")


def _flush(workdir: pathlib.Path, log: MetricsLog | None) -> None:
    """Flushes the metrics log before a save. Raises FileNotFoundError if the workdir was deleted."""
    (workdir / "config.json").stat()
    if log:
        log.sync()


def _print_overview(
    console: Console,
    experiment: Experiment,
    examples: int,
    checkpoints: Checkpoints,
    restored: int | None,
    workdir: pathlib.Path,
    handles_signals: bool,
) -> None:
    config, shapes = experiment.config, experiment.shapes
    train, slots = config.train, experiment.data_config.packing.slots
    devices = f"{experiment.mesh.size} {experiment.mesh.devices.flat[0].device_kind} device(s)"
    optimizer_name = dict(config.optimizer).get("name", "adamw")
    summary = {
        "mesh": f"{format_mesh(dict(experiment.mesh.shape))} on {devices}, {jax.process_count()} process(es)",
        "precision": f"{config.precision.compute} compute, float32 parameters",
        "parameters": f"{count_elements(shapes.parameters):,}",
        **{f"  {name}": f"{size:,}" for name, size in count_by_component(shapes.parameters).items()},
        "optimizer": f"{optimizer_name}, {count_elements(shapes.optimizer):,} state values",
        "batch": (
            f"{experiment.examples_per_step:.1f} examples on average, packed in {train.batch_size // slots} rows"
            if slots > 1
            else f"{train.batch_size} examples"
        )
        + (f" in {train.accumulate} microbatches" if train.accumulate > 1 else ""),
        "examples": f"{examples:,} in train",
        "steps": f"{train.steps:,} ({train.steps * experiment.examples_per_step / examples:.1f} epochs)",
    }
    for name, loss in experiment.chance_losses.items():
        summary[f"chance-level loss ({name})"] = "unknown" if loss is None else f"{loss:.3f}"
    for name in unsharded_parameters(experiment.mesh, experiment.shardings.parameters, shapes.parameters):
        summary[f"warning: {name}"] = "not divisible by mesh.fsdp, so every device stores all of it"
    service = checkpoints.preemption_service()
    if service:
        summary["preemption"] = "coordinated across hosts"
    elif not handles_signals:
        summary["preemption"] = "not handled, because the run is not in the main thread"
    else:
        summary["preemption"] = "saves on SIGTERM" if jax.process_count() == 1 else "not handled"
    summary["workdir"] = str(workdir) + (f", resumed at step {restored:,}" if restored is not None else "")
    print_key_values(console, "run summary", summary)


def _write_parameters(workdir: pathlib.Path, state: TrainState, writes: bool) -> None:
    from clu import parameter_overview

    # All processes compute means and standard deviations, because each holds only a shard of the parameters.
    overview = parameter_overview.get_parameter_overview(state.parameters)
    if writes:
        write_atomically(workdir / "parameters.txt", overview + "\n")


def _broken_records(experiment: Experiment) -> dict[str, int]:
    """Returns {split: number of unreadable records}, over all processes, of the splits read since this start."""
    mine = {split: sorted(records) for split, records in experiment.pipeline.broken.items()}
    found: dict[str, set[int]] = {}
    for message in exchange("the count of unreadable records", json.dumps(mine)):
        for split, records in json.loads(message).items():
            found.setdefault(split, set()).update(records)
    return {split: len(records) for split, records in found.items()}


def _print_outputs(console: Console, workdir: pathlib.Path, result: dict[str, Any]) -> None:
    counts = [f"{count:,} in {split}" for split, count in result["broken_records"].items() if count]
    broken = {"unreadable records": f"{', '.join(counts)}, masked"} if counts else {}
    print_key_values(
        console,
        "output files",
        {
            "results": str(workdir / "result.json"),
            "curves": f"{workdir / 'metrics.jsonl'}, or `tensorboard --logdir {workdir}`",
            "checkpoints": str(workdir / "checkpoints"),
            "parameters": str(workdir / "parameters.txt"),
            **broken,
            "time": f"{result['seconds']['train']} s of training, {result['seconds']['all']} s in total",
        },
    )
    print_ledger(console, result["ledger"])
