"""Train state: parameters, EMA, optimiser state, step counters and the metric states since the last log row."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mmjax.sharding import replicated
from mmjax.tokens import pytree


@pytree
class TrainState:
    """The complete state of a run, as checkpointed and restored.

    Attributes:
      parameters: nested dict of float32 arrays.
      optimizer: Optax optimiser state.
      ema: exponential moving average of the parameters, or {} without EMA.
      step: [] int32, number of updates.
      data_step: [] int32, number of batches seen; exceeds `step` by the number of skipped updates.
      window: metric states accumulated since the last log row, so that a resumed run logs the same rows.
    """

    parameters: Any
    optimizer: Any
    ema: Any
    step: Any
    data_step: Any
    window: Any

    @property
    def eval_parameters(self) -> Any:
        """Parameters for evaluation: the EMA if the run keeps one."""
        return self.ema if self.ema else self.parameters


def parameters_finite(parameters: Any, mesh: Mesh) -> bool:
    """True if no parameter is NaN or infinite. Must be called by all processes of the mesh."""

    def finite(parameters):
        return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(parameters)]).all()

    return bool(jax.jit(finite, out_shardings=replicated(mesh))(parameters))


def parameters_hash(parameters: Any) -> str:
    """SHA-256 of the names, shapes, dtypes and bytes of all parameters, gathered from all processes."""
    digest = hashlib.sha256()
    for path, leaf in sorted(jax.tree_util.tree_leaves_with_path(parameters), key=lambda item: str(item[0])):
        if not leaf.is_fully_addressable:
            from jax.experimental import multihost_utils

            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        array = np.asarray(leaf)
        digest.update(f"{path}{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
