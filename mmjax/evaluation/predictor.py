"""Predictions for a single example given on the command line; any input may be absent."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from mmjax.data.buffer_pool import BufferPool
from mmjax.data.packing import Packing
from mmjax.data.rows import PaddedRows
from mmjax.errors import RunError, UserError, nearest
from mmjax.evaluation.inference_batch import inference_batch
from mmjax.modalities import Modality
from mmjax.sharding import batch_shards, replicated
from mmjax.tokens import Batch, Input, TargetSpec
from mmjax.training.objective import Objective, Parameters

if TYPE_CHECKING:
    from mmjax.prepare.reduction import Reduction

NO_REDUCTIONS: Mapping[str, Reduction] = {}


def make_reductions(dataset: Any) -> dict[str, Reduction]:
    """Returns the data reduction of each input that the dataset, or the record of one, stores smaller."""
    # Imported here because the kinds are slow to import.
    from mmjax.prepare.reduction import Reduction

    reductions = getattr(dataset, "reductions", {})
    return {name: Reduction(dataset.inputs[name], **section) for name, section in reductions.items()}


def read_inputs(
    modalities: Mapping[str, Modality],
    arguments: Mapping[str, str],
    packing: Packing | None = None,
    reductions: Mapping[str, Reduction] = NO_REDUCTIONS,
) -> dict[str, Input]:
    """Reads and preprocesses the inputs given as `--NAME=ARGUMENT`: `read_raw`, then `process_inputs`."""
    return process_inputs(modalities, read_raw(modalities, arguments, reductions), arguments, packing, reductions)


def read_raw(
    modalities: Mapping[str, Modality],
    arguments: Mapping[str, str],
    reductions: Mapping[str, Reduction] = NO_REDUCTIONS,
) -> dict[str, Any]:
    """Reads the inputs given as `--NAME=ARGUMENT` to raw data, `{name: raw}`.

    Args:
      modalities: modality by input name.
      arguments: path or text by input name.
      reductions: data reduction by input name, from `make_reductions`; these inputs are decoded but not yet reduced.

    Raises:
      UserError: on an unknown or unreadable input, or without any input.
    """
    known = " or ".join(f"--{name}" for name in modalities)
    for name in arguments:
        if name not in modalities:
            raise UserError(f"--{name}", f"the run has no input {name!r}", nearest(name, modalities))
    if not arguments:
        raise UserError("mmjax predict", "no input is given", f"give {known}")
    readers: dict[str, Any] = {**modalities, **reductions}
    raws = {}
    for name, argument in arguments.items():
        with _invalid_input(name, argument):
            raws[name] = readers[name].read(argument, f"--{name}")
    return raws


@contextlib.contextmanager
def _invalid_input(name: str, argument: str) -> Iterator[None]:
    """Converts any exception to a UserError: damaged files make decoders raise errors of any type."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise UserError(f"--{name}", f"{argument!r}: {reason}", "give another") from error


def process_inputs(
    modalities: Mapping[str, Modality],
    raws: Mapping[str, Any],
    arguments: Mapping[str, str],
    packing: Packing | None = None,
    reductions: Mapping[str, Reduction] = NO_REDUCTIONS,
) -> dict[str, Input]:
    """Preprocesses raw inputs as in training.

    Args:
      modalities: modality by input name.
      raws: raw data by input name.
      arguments: path or text by input name, for messages.
      packing: packing of the training data, or None; the example gets its own row.
      reductions: data reduction by input name, of inputs that the training data stores smaller.

    Returns:
      `{name: Input}` with values `spec.shape` and mask `spec.shape[:mask_rank]`, without batch axis; inputs that are
      not given are omitted.

    Raises:
      UserError: if an input is invalid.
    """
    buffers = BufferPool()
    rows = packing.packed_rows(None, 1, buffers, slots=1) if packing else PaddedRows(modalities, 1, buffers)
    for name, raw in raws.items():
        with _invalid_input(name, arguments[name]):
            rows.put(name, 0, 0, reductions[name].apply(raw) if name in reductions else raw)
    return jax.tree.map(lambda leaf: leaf[0], rows.inputs)


def input_warnings(
    kinds: Mapping[str, str],
    modalities: Mapping[str, Modality],
    raws: Mapping[str, Any],
    reductions: Mapping[str, Reduction] = NO_REDUCTIONS,
) -> list[str]:
    """Lists faults, such as silence or a blank image, for which `mmjax prepare` would drop an input from training.

    Args:
      kinds: {input: kind}, from the dataset.
      modalities: {input: modality that processes it}.
      raws: {input: raw data}, from `read_raw`.
      reductions: {input: data reduction}, as given to `read_raw`.
    """
    from mmjax.prepare.kinds import KINDS

    warnings = []
    for name, raw in raws.items():
        kind = KINDS[kinds[name]]() if kinds[name] in KINDS else None
        # Faults are not checked for tables, whose cells are already parsed.
        faults: dict[str, str] = {}
        with _invalid_input(name, f"--{name}"):
            if name in reductions:
                faults = reductions[name].faults(raw)
            elif kind is not None and not kind.multi_column:
                faults = kind.faults(kind.measure(kind.decode(raw)))
        warnings += [f"--{name}: {fault}, {why}; the prediction may be arbitrary" for fault, why in faults.items()]
        warnings += [f"--{name}: {why}" for why in getattr(modalities[name], "warnings", lambda raw: [])(raw)]
    return warnings


class Predictor:
    """Predicts single examples with all tasks of a model, without dropout.

    Args:
      objective: objective of the run.
      mesh: device mesh; the example is padded to a batch of one row per batch shard.
      targets: specs of the dataset's targets; their values are not used.
    """

    def __init__(self, objective: Objective, mesh: Mesh, targets: Mapping[str, TargetSpec]):
        self.objective, self.mesh, self.targets = objective, mesh, dict(targets)

        def apply(parameters: Parameters, batch: Batch):
            tasks = objective.model(parameters).tasks
            weights = {name: tasks[name].weights(batch.zero_absent()) for name in objective.task_weights}
            return objective.features(parameters, batch, train=False), weights

        # Replicated, since any process may print the predictions.
        self.apply = jax.jit(apply, out_shardings=replicated(mesh))

    def run(self, parameters: Parameters, inputs: Mapping[str, Input]) -> dict[str, dict[str, Any]]:
        """Predicts one example.

        Args:
          parameters: model parameters.
          inputs: inputs without batch axis, from `read_inputs`.

        Returns:
          `{task: prediction}`, see `Task.predictions`; tasks whose inputs are all absent are left out.

        Raises:
          RunError: if an output of the model is not finite.
        """
        size = batch_shards(self.mesh)

        def pad(value: Any) -> np.ndarray:
            value = np.asarray(value)
            return np.concatenate([value[None], np.zeros((size - 1, *value.shape), value.dtype)])

        batch = inference_batch(self.mesh, jax.tree.map(pad, dict(inputs)), self.targets, size, num_valid=1)
        with jax.set_mesh(self.mesh):
            features, weights = self.apply(parameters, batch)
        tasks = self.objective.model(parameters).tasks
        predictions = {}
        for name, weight in jax.device_get(weights).items():
            if not weight[0] > 0:
                continue
            outputs = jax.device_get(features[name])
            if not all(np.isfinite(leaf[0]).all() for leaf in jax.tree.leaves(outputs)):
                raise RunError(f"the model's output for the task {name!r} is not finite, so there is no prediction")
            rows = tasks[name].predictions(outputs)
            if rows is not None:
                predictions[name] = rows[0]
        return predictions


def check_predictions(predictions: Mapping[str, Any], given: Collection[str], all_inputs: Collection[str]) -> None:
    """Checks that at least one task has a prediction.

    Args:
      predictions: output of `Predictor.run`.
      given: names of the given inputs.
      all_inputs: names of all inputs of the model.

    Raises:
      UserError: if no task can predict from the given inputs.
    """
    if not predictions:
        missing = " or ".join(f"--{name}" for name in all_inputs if name not in given)
        remedy = f"give {missing} too" if missing else "train a run with a task that predicts, such as classification"
        raise UserError("mmjax predict", f"no task of the run predicts from {' and '.join(sorted(given))}", remedy)
