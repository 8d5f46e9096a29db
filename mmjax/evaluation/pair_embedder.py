"""Embeddings of pairs of inputs from the contrastive tasks of a run."""

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
from mmjax.evaluation.inference_batch import inference_batch
from mmjax.modalities import Modality
from mmjax.sharding import batch_shards, replicated
from mmjax.tasks.contrastive import Contrastive
from mmjax.tokens import Batch, Input, TargetSpec
from mmjax.training.objective import Objective, Parameters

_BATCH_SIZE = 64


class PairEmbedder:
    """Embeds pairs of inputs with the contrastive tasks of a run, without dropout.

    Args:
      objective: objective of the run.
      parameters: parameters of the run.
      mesh: device mesh.
      modalities: preprocessing by input name.
      targets: specs of the dataset's targets; their values are not used.
      identity: name of the run and its step.
      packing: packing of the training data, or None; each example gets its own row.

    Raises:
      UserError: if the run has no contrastive task on the outputs of two encoders.
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
            remedy = "give a run with a contrastive task whose pair names two encoders"
            raise UserError("--alignment", f"{identity} has no contrastive task on two inputs", remedy)
        names = list(self._tasks.values())

        def embed(parameters: Parameters, batch: Batch):
            features = objective.features(parameters, batch, train=False)
            return {name: features[name] for name in names}

        self._embed = jax.jit(embed, out_shardings=replicated(mesh))

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Input names of the embedded pairs."""
        return list(self._tasks)

    def embed(self, rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
        """Embeds rows `{input: raw data or None}`.

        Returns:
          `{pair: (first, second)}`, L2-normalised float32 [rows, width]; NaN where an input is absent or invalid.
        """
        chunks: dict[tuple[str, str], list[list[np.ndarray]]] = {pair: [] for pair in self._tasks}
        size = -(-_BATCH_SIZE // batch_shards(self._mesh)) * batch_shards(self._mesh)
        for start in range(0, len(rows), size):
            chunk = rows[start : start + size]
            inputs = self._inputs(chunk, size)
            present = {name: each.present[: len(chunk), None] for name, each in inputs.items()}
            batch = inference_batch(self._mesh, inputs, self._targets, size, len(chunk))
            with jax.set_mesh(self._mesh):
                features = jax.device_get(self._embed(self._parameters, batch))
            for pair, task in self._tasks.items():
                sides = zip(pair, features[task], strict=True)
                chunks[pair].append([np.where(present[name], side[: len(chunk)], np.nan) for name, side in sides])
        return {
            pair: (np.concatenate([first for first, _ in parts]), np.concatenate([second for _, second in parts]))
            for pair, parts in chunks.items()
        }

    def _inputs(self, rows: Sequence[Mapping[str, Any]], size: int) -> dict[str, Input]:
        """Preprocesses raw data into inputs with `size` rows, padded with absent examples."""
        batch_rows: Rows = (
            self._packing.packed_rows(None, size, BufferPool(), slots=1)
            if self._packing
            else PaddedRows(self._modalities, size, BufferPool())
        )
        for index, row in enumerate(rows):
            for name in self._modalities:
                if row.get(name) is not None:
                    # Invalid data raises ValueError and stays absent.
                    with contextlib.suppress(ValueError):
                        batch_rows.put(name, index, index, row[name])
        return batch_rows.inputs
