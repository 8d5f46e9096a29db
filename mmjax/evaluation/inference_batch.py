"""Batches without targets, for inference."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from mmjax.sharding import batch_rows, place_batch
from mmjax.tokens import Batch, Input, Target, TargetSpec


def inference_batch(
    mesh: Mesh, inputs: dict[str, Input], targets: Mapping[str, TargetSpec], size: int, num_valid: int
) -> Batch:
    """Builds a batch with zero targets and places it on the mesh.

    Args:
      mesh: device mesh.
      inputs: inputs with `size` rows, padding included.
      targets: specs of the dataset's targets.
      size: number of rows.
      num_valid: number of examples before the padding. Their targets have weight 1, so that a task's weight is 0 only
        if its inputs are absent.
    """
    index = np.arange(size, dtype=np.int32)
    weight = (index < num_valid).astype(np.float32)
    batch = Batch(
        inputs=inputs,
        targets={name: Target(np.zeros((size, *spec.shape), spec.dtype), weight) for name, spec in targets.items()},
        ids=np.where(index < num_valid, index, np.int32(-1)),
        step=np.zeros((), np.int32),
    )
    rows = batch_rows(mesh, size)
    return place_batch(mesh, jax.tree.map(lambda leaf: leaf[rows] if leaf.ndim else leaf, batch), size)
