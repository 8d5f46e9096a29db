"""Compute precision of a model."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
    """Dtype of activations and matrix products. Parameters, optimiser, softmax, norms and losses are always float32.

    Attributes:
      compute: "bfloat16" for TPUs and GPUs, "float32" for CPUs and for exact comparisons.
    """

    compute: Literal["bfloat16", "float32"] = "float32"

    @property
    def dtype(self):
        """`compute` as a NumPy dtype."""
        return jnp.dtype(self.compute)
