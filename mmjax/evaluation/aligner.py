"""What a run with a contrastive task makes of the two inputs that it compares."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mmjax.data.buffer_pool import BufferPool
from mmjax.data.packing import Packing
from mmjax.data.rows import PaddedRows, Rows
from mmjax.errors import UserError
from mmjax.modalities import Modality
from mmjax.sharding import batch_rows, batch_shards, place_batch, replicated
from mmjax.tasks.contrastive import Contrastive
from mmjax.tokens import Batch, Input, Target, TargetSpec
from mmjax.training.objective import Objective, Parameters

_BATCH = 64


class Aligner:
    """Embeds pairs of inputs as the contrastive tasks of a run do.

    Args:
      objective: whose tasks embed, without dropout.
      parameters: of the run.
      mesh: where.
      modalities: {name of an input: what makes raw data what the model takes}.
      targets: what each target of the data looks like; nobody knows their values here.
      identity: names the run and its step.
      packing: where training packed examples: here each then has a row to itself.

    Raises:
      UserError: if no task of the run compares two inputs.
    """

    def __init__(
        self,
        objective: Objective,
        parameters: Parameters,
        mesh: Mesh,
        modalities: Mapping[str, Modality],
        targets: Mapping[str, TargetSpec],
        identity: str,
        packing: Packing | None = None,
    ):
        self.identity, self._packing = identity, packing
        self._parameters, self._mesh, self._modalities, self._targets = parameters, mesh, dict(modalities), targets
        self._tasks: dict[tuple[str, str], str] = {}
        for name, task in objective.model(parameters).tasks.items():
            if isinstance(task, Contrastive):
                first, second = (reads.removeprefix("encoders.") for reads in task.config.pair)
                if first in modalities and second in modalities:
                    self._tasks.setdefault((first, second), name)
        if not self._tasks:
            remedy = "give a run with a task of kind contrastive whose pair is of two encoders"
            raise UserError("--alignment", f"no task of {identity} compares two inputs", remedy)
        names = list(self._tasks.values())

        def embed(parameters: Parameters, batch: Batch):
            features = objective.features(parameters, batch, train=False)
            return {name: features[name] for name in names}

        self._embed = jax.jit(embed, out_shardings=replicated(mesh))

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The names of the two inputs of each comparison."""
        return list(self._tasks)

    def embed(self, rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
        """{pair: (float32 [rows, width], the same)} of rows {input: raw data or None}, each of length 1.

        Where a row lacks an input, or has one that cannot be processed, its embedding is NaN.
        """
        found: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]] = {pair: [] for pair in self._tasks}
        size = -(-_BATCH // batch_shards(self._mesh)) * batch_shards(self._mesh)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            inputs = self._inputs(part, size)
            there = {name: each.present[: len(part), None] for name, each in inputs.items()}
            with jax.set_mesh(self._mesh):
                features = jax.device_get(self._embed(self._parameters, self._batch(inputs, size)))
            for pair, task in self._tasks.items():
                one, other = (
                    np.where(there[name], side[: len(part)], np.nan)
                    for name, side in zip(pair, features[task], strict=True)
                )
                found[pair].append((one, other))
        return {
            pair: (np.concatenate([one for one, _ in parts]), np.concatenate([other for _, other in parts]))
            for pair, parts in found.items()
        }

    def _inputs(self, rows: Sequence[Mapping[str, Any]], size: int) -> dict[str, Input]:
        made: Rows = (
            self._packing.packed_rows(None, size, BufferPool(), slots=1)
            if self._packing
            else PaddedRows(self._modalities, size, BufferPool())
        )
        for place, row in enumerate(rows):
            for name in self._modalities:
                if row.get(name) is not None:
                    # What cannot be processed stays absent.
                    with contextlib.suppress(ValueError):
                        made.put(name, place, place, row[name])
        return made.inputs

    def _batch(self, inputs: dict[str, Input], size: int) -> Batch:
        batch = Batch(
            inputs=inputs,
            targets={
                name: Target(np.zeros((size, *spec.shape), spec.dtype), np.zeros(size, np.float32))
                for name, spec in self._targets.items()
            },
            ids=np.arange(size, dtype=np.int32),
            step=np.zeros((), np.int32),
        )
        own = batch_rows(self._mesh, size)
        return place_batch(self._mesh, jax.tree.map(lambda leaf: leaf[own] if leaf.ndim else leaf, batch), size)
