"""A run in a workdir: starts or resumes it, and leaves its result."""

from __future__ import annotations

import math
import pathlib
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
from rich.console import Console

from mmjax.data.dataset import check_split
from mmjax.errors import UserError, nearest
from mmjax.evaluation import EvaluationHook, subset_name
from mmjax.experiment import CHANGEABLE, Experiment
from mmjax.files import write_atomically, write_json
from mmjax.reporting.overview import count_by_component, count_elements, print_key_values, print_metrics, print_subsets
from mmjax.processes import Watch, agree_or_raise
from mmjax.sharding import MeshConfig, format_mesh, unsharded_parameters
from mmjax.training.checkpoint import CheckpointHook, Checkpoints
from mmjax.training.hooks.log import LogHook
from mmjax.training.loop import Hook, Loop
from mmjax.training.metrics_log import MetricsLog, read_rows
from mmjax.training.state import TrainState, parameters_hash
from mmjax.runs.workdir import check_same_config, check_same_files, provenance, read_config, write_config


def train(raw: Any, workdir: pathlib.Path, console: Console | None = None) -> dict[str, Any]:
    """Trains a recipe, from the workdir's newest checkpoint if there is one, and evaluates it.

    Returns:
      What `result.json` holds.

    Raises:
      UserError: before anything is written, where the recipe or the workdir is wrong.
    """
    started = time.perf_counter()
    writes = jax.process_index() == 0
    console = console or Console(quiet=not writes)
    # No process writes before all of them have looked, and what one refuses none begins.
    with agree_or_raise("the check of the config and the workdir"):
        experiment = Experiment(raw)
        check_same_config(workdir, experiment.raw, CHANGEABLE)
        check_same_files(workdir, experiment.modalities)
    with agree_or_raise("the preparation of the data"):
        _check_not_beyond(workdir, experiment)
        experiment.dataset.prepare()
        examples = _check_examples(experiment)
    if writes:
        write_config(workdir, experiment.raw, experiment.modalities)
    checkpoints = Checkpoints(workdir, experiment.config.checkpoint)
    state, restored = _first_state(experiment, checkpoints)
    if writes:
        _print_overview(console, experiment, examples, checkpoints, restored, workdir)
    _write_parameters(workdir, state, writes)
    # Hooks of all processes read the rows that are left after a crash.
    with agree_or_raise("the repair of metrics.jsonl"):
        log = MetricsLog(workdir, restored or 0) if writes else None
    with Watch(experiment.layout.heartbeat_timeout, experiment.layout.stall) as watch:
        loop = Loop(state, experiment.config.train.steps, _hooks(experiment, checkpoints, log, workdir, console, watch))
        batches = experiment.train_batches(loop.step)
        try:
            state = loop.run(experiment.compile_step(), batches)
        finally:
            batches.close()
            if log:
                log.close()
        trained = time.perf_counter() - started
        if loop.stop_reason:
            console.print(f"stopped at step {loop.step}: {loop.stop_reason}")
        interrupted = loop.stop_reason is not None and not loop.done and loop.stop_reason.startswith("the machine")
        if interrupted:
            checkpoints.close()
            raise SystemExit(f"mmjax: stopped at step {loop.step} with a checkpoint; run the same command to go on")
        if loop.step and not int(state.step):
            problem = f"the gradient was not finite in any of {loop.step} steps, so nothing was learned"
            raise SystemExit(f"mmjax: {problem}; lower the tasks' weights, or look for infinite values in the data")
        result = {
            "seed": experiment.config.seed,
            "steps": loop.step,
            "parameters": count_elements(state.parameters),
            "parameters_hash": parameters_hash(state.parameters),
            **evaluate_splits(experiment, state.eval_parameters, experiment.config.evaluate.splits, console),
            **provenance(),
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "seconds": {"train": round(trained, 1), "all": round(time.perf_counter() - started, 1)},
        }
        checkpoints.close()
    if writes:
        write_json(workdir / "result.json", result)
        _print_places(console, workdir, result)
    return result


def restore(workdir: pathlib.Path, mesh: MeshConfig | None = None) -> tuple[Experiment, TrainState]:
    """The experiment of a workdir, and the state that its section `evaluate.use` asks for, on this machine's devices.

    Raises:
      UserError: where there is no run, or no checkpoint of it yet.
    """
    raw = read_config(workdir)
    missing = UserError("--workdir", f"{workdir} has no checkpoint", "train, with a small checkpoint.every if need be")
    if not (workdir / "checkpoints").is_dir():
        raise missing
    experiment = Experiment(raw, None if mesh else _fitting_devices(raw), mesh or MeshConfig())
    checkpoints = Checkpoints(workdir, experiment.config.checkpoint, read_only=True)
    step = checkpoints.best() if experiment.config.evaluate.use == "best" else checkpoints.latest
    if step is None:
        raise missing
    state = checkpoints.restore(step, experiment.abstract_state)
    checkpoints.close()
    return experiment, state


def evaluate(
    workdir: pathlib.Path,
    splits: Sequence[str] | None = None,
    *,
    without: Collection[str] = (),
    all_subsets: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Metrics of a trained run, printed as tables.

    Args:
      splits: by default those of the run's section `evaluate`.
      without: inputs that are absent from every example.
      all_subsets: whether to go through all subsets of the inputs instead.

    Returns:
      {"step", "without", split: metrics}, and as in `result.json` "subsets" and "ceilings" if `all_subsets`.

    Raises:
      UserError: where there is no checkpoint, or a split or an input that there is not.
    """
    console = console or Console(quiet=jax.process_index() != 0)
    experiment, state = restore(workdir)
    splits = tuple(experiment.config.evaluate.splits if splits is None else splits)
    for split in splits:
        check_split(split, experiment.dataset.splits, "--split")
    for name in without:
        if name not in experiment.specs:
            raise UserError("--without", f"the run has no input {name!r}", nearest(name, experiment.specs))
    if set(without) == set(experiment.specs):
        raise UserError("--without", f"{','.join(without)} leaves no input", "leave one of them in")
    result: dict[str, Any] = {"step": int(state.data_step), "without": sorted(set(without))}
    if all_subsets:
        return result | evaluate_splits(experiment, state.eval_parameters, splits, console, all_subsets=True)
    present = subset_name([name for name in experiment.specs if name not in without])
    for split in splits:
        result[split] = experiment.evaluator.run(state.eval_parameters, split, without)
        print_metrics(console, f"{split}, step {result['step']:,}, with {present}", result[split])
    return result


def evaluate_splits(
    experiment: Experiment,
    parameters: Any,
    splits: tuple[str, ...],
    console: Console,
    all_subsets: bool | None = None,
) -> dict[str, dict[str, Any]]:
    """Metrics of each split, printed as a table of subsets if `all_subsets`, by default if the config asks for it.

    Returns:
      {split: metrics}, and under "subsets" and "ceilings" {split: {subset: metrics}}.
    """
    result: dict[str, dict[str, Any]] = {"subsets": {}, "ceilings": {}}
    all_subsets = experiment.config.evaluate.subsets if all_subsets is None else all_subsets
    for split in splits:
        everything = subset_name(experiment.inputs_of(split))
        if all_subsets and len(experiment.specs) > 1:
            table = experiment.evaluate_subsets(parameters, split)
        else:
            table = {everything: experiment.evaluator.run(parameters, split)}
        row = table[everything]
        ceilings = experiment.ceilings(split)
        result[split], result["subsets"][split], result["ceilings"][split] = row, table, ceilings
        shown = [metric for metric in experiment.primary_metrics if metric in row]
        print_subsets(console, f"{split}: metrics with some inputs only", table, ceilings, shown)
    return result


def _fitting_devices(raw: Mapping[str, Any]) -> list[jax.Device]:
    """As many devices as the run's batches divide over: a run need not be read where it was trained."""
    devices = jax.devices()
    if jax.process_count() > 1:
        return devices
    train, evaluation = raw["train"], raw.get("evaluate", {})
    parts = max(train.get("accumulate", 1), (train.get("estimator") or {}).get("microbatches", 1))
    slots = (raw["data"].get("packing") or {}).get("slots", 1)
    common = math.gcd(train["batch_size"] // parts, evaluation.get("batch_size") or train["batch_size"]) // slots
    return devices[: max(count for count in range(1, len(devices) + 1) if common % count == 0)]


def _check_not_beyond(workdir: pathlib.Path, experiment: Experiment) -> None:
    """Raises a UserError where the run has gone further than `train.steps` already."""
    folder, steps = workdir / "checkpoints", experiment.config.train.steps
    saved = [int(child.name) for child in folder.iterdir() if child.name.isdigit()] if folder.is_dir() else []
    step = max(saved, default=0)
    if step > steps:
        problem = f"{steps} lies before the checkpoint of step {step} in {workdir}"
        raise UserError("train.steps", problem, f"give at least {step}, or another workdir")


def _check_examples(experiment: Experiment) -> int:
    """The number of examples to train on; raises a UserError where a split that the run will read has none."""
    config = experiment.config.evaluate
    for split in (*config.splits, *(("validation",) if config.every else ())):
        experiment.pipeline.size(split)
    return experiment.pipeline.size("train")


def _first_state(experiment: Experiment, checkpoints: Checkpoints) -> tuple[TrainState, int | None]:
    step = checkpoints.latest
    if step is None:
        return experiment.init_state(), None
    return checkpoints.restore(step, experiment.abstract_state), step


def _hooks(
    experiment: Experiment,
    checkpoints: Checkpoints,
    log: MetricsLog | None,
    workdir: pathlib.Path,
    console: Console,
    watch: Watch,
) -> list[Hook]:
    config = experiment.config
    history = read_rows(workdir) if (workdir / "metrics.jsonl").exists() else []
    hooks: list[Hook] = [
        LogHook(config.log, log, console, experiment.schedule, experiment.examples_per_step),
        EvaluationHook(experiment.evaluator, config.evaluate.every, log),
    ]
    hooks += [cls(options, history) for cls, options in experiment.hooks]
    hooks.append(CheckpointHook(checkpoints, log.sync if log else lambda: None))
    hooks.append(_Mark(watch))
    return hooks


class _Mark(Hook):
    """Tells the watch over all processes how far this one is."""

    def __init__(self, watch: Watch):
        self.watch = watch

    def after_step(self, loop: Loop) -> None:
        self.watch.mark(loop.step)


def _print_overview(
    console: Console,
    experiment: Experiment,
    examples: int,
    checkpoints: Checkpoints,
    restored: int | None,
    workdir: pathlib.Path,
) -> None:
    config, shapes = experiment.config, experiment.shapes
    train, slots = config.train, experiment.data_config.packing.slots
    devices = f"{experiment.mesh.size} {experiment.mesh.devices.flat[0].device_kind} device(s)"
    facts = {
        "mesh": f"{format_mesh(dict(experiment.mesh.shape))} on {devices}, {jax.process_count()} process(es)",
        "precision": f"{config.precision.compute} products, float32 parameters",
        "parameters": f"{count_elements(shapes.parameters):,}",
        **{f"  {name}": f"{number:,}" for name, number in count_by_component(shapes.parameters).items()},
        "optimizer": f"{dict(config.optimizer).get('name', 'adamw')}, {count_elements(shapes.optimizer):,} numbers of state",
        "batch": (
            f"{experiment.examples_per_step:.1f} examples in {train.batch_size // slots} rows, on average"
            if slots > 1
            else f"{train.batch_size} examples"
        )
        + (f" in {train.accumulate} microbatches" if train.accumulate > 1 else ""),
        "examples": f"{examples:,} in train",
        "steps": f"{train.steps:,} ({train.steps * experiment.examples_per_step / examples:.1f} epochs)",
    }
    for name, chance in experiment.chances.items():
        facts[f"loss of {name} by chance"] = "unknown" if chance is None else f"{chance:.3f}"
    for name in unsharded_parameters(experiment.mesh, experiment.shardings.parameters, shapes.parameters):
        facts[f"warning: {name}"] = "does not divide by mesh.fsdp, each device holds all of it"
    service = checkpoints.preemption_service()
    facts["preemption"] = (
        "agreed between hosts" if service else "saves on SIGTERM" if jax.process_count() == 1 else "not watched"
    )
    facts["workdir"] = str(workdir) + (f", resumed at step {restored:,}" if restored is not None else "")
    print_key_values(console, "what will run", facts)


def _write_parameters(workdir: pathlib.Path, state: TrainState, writes: bool) -> None:
    from clu import parameter_overview

    # All processes compute the means and deviations: each holds a part of the parameters.
    overview = parameter_overview.get_parameter_overview(state.parameters)
    if writes:
        write_atomically(workdir / "parameters.txt", overview + "\n")


def _print_places(console: Console, workdir: pathlib.Path, result: dict[str, Any]) -> None:
    print_key_values(
        console,
        "where everything lies",
        {
            "results": str(workdir / "result.json"),
            "curves": f"{workdir / 'metrics.jsonl'}, or `tensorboard --logdir {workdir}`",
            "checkpoints": str(workdir / "checkpoints"),
            "parameters": str(workdir / "parameters.txt"),
            "time": f"{result['seconds']['train']} s to train, {result['seconds']['all']} s in all",
        },
    )
