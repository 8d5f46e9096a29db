"""Base class of the tasks, and helpers for masking absent examples."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmjax.errors import UserError, nearest
from mmjax.tasks.metrics import States
from mmjax.tokens import Batch, TargetSpec, Tokens

ENCODED = "encoders."
"""Prefix of token names that bypass the fusion: "encoders.NAME" are the output tokens of encoder NAME."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Options common to all tasks.

    Attributes:
      weight: factor of the task's mean loss in the total loss; a number or a schedule.
    """

    weight: Any = 1.0


class Task(nnx.Module):
    """A head, a loss and metrics, split into three methods so that gradients can be accumulated over microbatches.

    1. `features(outputs)`: head outputs per example, `[B, ...]` leaves.
    2. `losses(features, batch)`: loss per example `[B]`, finite everywhere. It may depend on other examples of the
       batch only if the class sets `coupled = True`, as contrastive losses do.
    3. `metrics(features, batch)`: additive metric states by name.

    The train step multiplies the losses by `weights(batch)` and divides by the sum of the weights over the whole batch,
    for any number of microbatches and devices.

    Subclasses are constructed as `cls(config, name, widths, targets, rngs=rngs)`: `widths` maps the names of readable
    tokens to their widths, and `targets` the names of the dataset's targets to their `TargetSpec`.
    """

    coupled: ClassVar[bool] = False
    """True if the loss of one example depends on other examples of the batch."""

    example: ClassVar[TargetSpec | None] = None
    """Target of the task in `tests/contracts.py`; None for the default target with five classes."""

    @property
    def primary_metric(self) -> str:
        """Name of the metric that tables show first."""
        return "loss"

    def weights(self, batch: Batch) -> Float[Array, " batch"]:
        """Weight of each example, float32; depends on the batch only. 0 for absent inputs or targets."""
        raise NotImplementedError

    def features(self, outputs: dict[str, Tokens]) -> Any:
        """Head outputs per example: a pytree with leaves `[B, ...]`."""
        raise NotImplementedError

    def losses(self, features: Any, batch: Batch) -> Float[Array, " batch"]:
        """Unweighted loss of each example, finite also where the weight is 0."""
        raise NotImplementedError

    def eval_losses(self, features: Any, batch: Batch) -> Float[Array, " batch"]:
        """Loss of each example in evaluation: `losses` without regularisation such as label smoothing."""
        return self.losses(features, batch)

    def metrics(self, features: Any, batch: Batch) -> States:
        """Additive metric states by name, weighted by `weights(batch)`."""
        raise NotImplementedError

    def predictions(self, features: Any) -> list[dict[str, Any]] | None:
        """Predictions per example for `mmjax predict`, computed on the host.

        Returns:
          `{"answer", "probability", "top": [{"answer", "probability"}, ...]}` per example; `{"answer"}` alone for
          regression; `{"similarity"}` for pairs; None for tasks without predictions for single examples.
        """
        return None

    def chance_loss(self, batch_size: int) -> float | None:
        """Chance-level loss, or None if the task has none."""
        return None


def presence(batch: Batch, reads: str) -> Float[Array, " batch"]:
    """Mask of the examples whose tokens `reads` have a present input (any input for fused tokens); 1.0 or 0.0."""
    name = reads.removeprefix(ENCODED)
    inputs = [batch.inputs[name]] if name in batch.inputs else list(batch.inputs.values())
    return jnp.stack([each.present for each in inputs]).any(axis=0).astype(jnp.float32)


def check_reads(reads: str, widths: dict[str, int], where: str) -> None:
    """Checks that the model has tokens named `reads`.

    Raises:
      UserError: if it has none.
    """
    if reads not in widths:
        raise UserError(where, f"the model has no tokens named {reads!r}", nearest(reads, widths))
