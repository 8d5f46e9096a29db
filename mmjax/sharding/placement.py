"""From rows on the hosts to one global array on the mesh."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmjax.errors import UserError
from mmjax.sharding.rules import RULES, axis_size
from mmjax.tokens import Batch


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first dimension over all the axes that split a batch."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts the mesh splits a batch."""
    return axis_size(mesh, RULES["batch"])


def batch_rows(mesh: Mesh, batch_size: int, where: str = "train.batch_size") -> np.ndarray:
    """The rows of a global batch that this process has to load: those of its own devices.

    Raises:
      UserError: where the batch does not divide.
    """
    if batch_size % batch_shards(mesh):
        raise UserError(
            where,
            f"{batch_size} does not divide over the {batch_shards(mesh)} parts of the mesh",
            f"choose a multiple of {batch_shards(mesh)}",
        )
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in slices]))


def place_batch(mesh: Mesh, batch: Batch, batch_size: int) -> Batch:
    """Makes the global batch from this process's rows, in the order of `batch_rows`.

    Every array has the global shape afterwards; no data crosses between processes.
    """
    sharding = batch_sharding(mesh)

    def place(local):
        local = np.asarray(local)
        if local.ndim == 0:
            # `jax.device_put` would compare the processes' numbers with each other, a collective for each batch.
            return jax.make_array_from_callback((), replicated(mesh), lambda _: local)
        return jax.make_array_from_process_local_data(sharding, local, (batch_size, *local.shape[1:]))

    return jax.tree.map(place, batch)
