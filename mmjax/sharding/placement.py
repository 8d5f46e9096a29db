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


def batch_rows(mesh: Mesh, rows: int, where: str = "train.batch_size", slots: int = 1) -> np.ndarray:
    """The rows of a global batch that this process has to load: those of its own devices.

    Args:
      rows: of the global batch, each with `slots` examples.
      where: the batch size in the config, for messages.

    Raises:
      UserError: where the batch does not divide.
    """
    shards = batch_shards(mesh)
    if rows % shards:
        raise UserError(
            where,
            f"{rows * slots} does not divide over the {shards} parts of the mesh",
            f"choose a multiple of {shards * slots}",
        )
    slices = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[index] for index in slices]))


def place_batch(mesh: Mesh, batch: Batch, batch_size: int) -> Batch:
    """Makes the global batch of `batch_size` examples from this process's rows, in the order of `batch_rows`.

    Every array has the global shape afterwards; no data crosses between processes.
    """
    sharding, whole = batch_sharding(mesh), replicated(mesh)
    if sharding.is_fully_addressable:
        # All arrays in one call, which costs the host a third of one call for each.
        return jax.device_put(batch, jax.tree.map(lambda local: sharding if np.ndim(local) else whole, batch))
    # Inputs have fewer rows than the batch has examples where several share one.
    shares = batch_size // batch.size

    def place(local):
        local = np.asarray(local)
        if local.ndim == 0:
            # `jax.device_put` would compare the processes' numbers with each other, a collective for each batch.
            return jax.make_array_from_callback((), whole, lambda _: local)
        return jax.make_array_from_process_local_data(sharding, local, (shares * len(local), *local.shape[1:]))

    return jax.tree.map(place, batch)
