"""Which numbers a model computes in."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
    """Parameters, optimiser, softmax, norms, logits and losses are float32 always; matrix products are in `compute`.

    Attributes:
      compute: "bfloat16" for TPUs and GPUs, "float32" for CPUs and for tests of equality.
    """

    compute: Literal["bfloat16", "float32"] = "float32"

    @property
    def dtype(self):
        return jnp.dtype(self.compute)
