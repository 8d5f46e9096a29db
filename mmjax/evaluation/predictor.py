"""Answers for one example that somebody has at hand, with any of the model's inputs absent."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mmjax.data.buffer_pool import BufferPool
from mmjax.data.packing import Packing
from mmjax.data.rows import PaddedRows
from mmjax.errors import UserError, nearest
from mmjax.modalities import Modality
from mmjax.sharding import batch_rows, batch_shards, place_batch, replicated
from mmjax.tokens import Batch, Input, Target, TargetSpec
from mmjax.training.objective import Objective, Parameters


def read_inputs(
    modalities: Mapping[str, Modality], arguments: Mapping[str, str], packing: Packing | None = None
) -> dict[str, Input]:
    """Reads what `--NAME=ARGUMENT` gives, and makes it what the model takes, as in training.

    Args:
      modalities: {name of an input: what reads and processes it}.
      arguments: {name of an input: a file's path, or a sentence}.
      packing: where training packs examples: this one then has a row to itself.

    Returns:
      {name: Input with values `spec.shape` and mask `spec.shape[:mask_rank]`}, absent where there is no argument.

    Raises:
      UserError: for an input that the model does not have, one that cannot be read, and where there is none at all.
    """
    known = " or ".join(f"--{name}" for name in modalities)
    for name in arguments:
        if name not in modalities:
            raise UserError(f"--{name}", f"the run has no input {name!r}", nearest(name, modalities))
    if not arguments:
        raise UserError("mmjax predict", "no input is given", f"give {known}")
    buffers = BufferPool()
    rows = packing.packed_rows(None, 1, buffers, slots=1) if packing else PaddedRows(modalities, 1, buffers)
    for name, argument in arguments.items():
        where = f"--{name}"
        raw = modalities[name].read(argument, where)
        try:
            rows.put(name, 0, 0, raw)
        except ValueError as error:
            raise UserError(where, f"{argument!r}: {error}", "give another") from error
    return jax.tree.map(lambda leaf: leaf[0], rows.inputs)


class Predictor:
    """Answers of a model's tasks about single examples.

    Args:
      objective: whose tasks answer, without dropout.
      mesh: where; the example is filled up with absent ones to what the mesh needs.
      targets: what each target of the data looks like; nobody knows their values here.
    """

    def __init__(self, objective: Objective, mesh: Mesh, targets: Mapping[str, TargetSpec]):
        self.objective, self.mesh, self.targets = objective, mesh, dict(targets)

        def measure(parameters: Parameters, batch: Batch):
            tasks = objective.model(parameters).tasks
            weights = {name: tasks[name].weights(batch.zero_absent()) for name in objective.task_weights}
            return objective.features(parameters, batch, train=False), weights

        # On every device and every host: any of them may print the answers.
        self.measure = jax.jit(measure, out_shardings=replicated(mesh))

    def run(self, parameters: Parameters, inputs: Mapping[str, Input]) -> dict[str, dict[str, Any]]:
        """{task: {"answer", "probability", "top"}} for one example; tasks whose inputs are all absent are left out."""
        size = batch_shards(self.mesh)
        with jax.set_mesh(self.mesh):
            features, weights = self.measure(parameters, self._batch(inputs, size))
        model = self.objective.model(parameters)
        answers = {}
        for name, weight in jax.device_get(weights).items():
            found = model.tasks[name].predictions(jax.device_get(features[name])) if weight[0] > 0 else None
            if found is not None:
                answers[name] = found[0]
        return answers

    def _batch(self, inputs: Mapping[str, Input], size: int) -> Batch:
        """The example in row 0 of a batch on the mesh, the other rows absent."""

        def row_zero(value: Any) -> np.ndarray:
            value = np.asarray(value)
            rows = np.zeros((size, *value.shape), value.dtype)
            rows[0] = value
            return rows

        batch = Batch(
            inputs=jax.tree.map(row_zero, dict(inputs)),
            # A target of weight 1 for the example, so that a task's weight says whether its inputs are there.
            targets={
                name: Target(np.zeros((size, *spec.shape), spec.dtype), row_zero(np.float32(1)))
                for name, spec in self.targets.items()
            },
            ids=np.where(np.arange(size) == 0, 0, -1).astype(np.int32),
            step=np.zeros((), np.int32),
        )
        rows = batch_rows(self.mesh, size)
        local = jax.tree.map(lambda leaf: leaf[rows] if leaf.ndim else leaf, batch)
        return place_batch(self.mesh, local, size)


def check_answers(answers: Mapping[str, Any], given: Collection[str], all_inputs: Collection[str]) -> None:
    """Raises a UserError where no task can say anything about the inputs that are given."""
    if not answers:
        missing = " or ".join(f"--{name}" for name in all_inputs if name not in given)
        remedy = f"give {missing} too" if missing else "train a run with a task that answers, such as a classification"
        raise UserError("mmjax predict", f"no task of the run answers from {' and '.join(sorted(given))}", remedy)
