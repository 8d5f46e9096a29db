"""What a training step changes: parameters, their average, optimiser, two counters, metrics since the last log."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import numpy as np

from mmjax.tokens import pytree


@pytree
class TrainState:
    """The state of a run; everything that a resumed run needs.

    Attributes:
      parameters: nested dict of float32 arrays.
      optimizer: the state of the Optax optimiser.
      ema: exponential moving average of the parameters, or {} if the run keeps none.
      step: [] int32, updates made.
      data_step: [] int32, batches seen; larger than `step` where updates were skipped.
      window: states of the metrics since the last log, so that a resumed run logs the same rows.
    """

    parameters: Any
    optimizer: Any
    ema: Any
    step: Any
    data_step: Any
    window: Any

    @property
    def evaluated(self) -> Any:
        """The parameters that evaluation uses: the average if there is one."""
        return self.ema if self.ema else self.parameters


def parameters_hash(parameters: Any) -> str:
    """SHA-256 over the names, shapes and bytes of all parameters, which are gathered from all processes."""
    digest = hashlib.sha256()
    for path, leaf in sorted(jax.tree_util.tree_leaves_with_path(parameters), key=lambda item: str(item[0])):
        if not leaf.is_fully_addressable:
            from jax.experimental import multihost_utils

            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        array = np.asarray(leaf)
        digest.update(f"{path}{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
