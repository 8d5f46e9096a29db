"""What every task has in common: names of what it reads, and examples that count only where it is there."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.errors import UserError, nearest
from mmjax.tasks.metrics import States
from mmjax.tokens import Batch, TargetSpec, Tokens

ENCODED = "encoders."
"""A task that reads "encoders.NAME" gets that encoder's tokens as they were before the fusion."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What the loop knows of a task.

    Attributes:
      weight: factor of the task's mean loss in the total; a number, or a schedule.
    """

    weight: Any = 1.0


class Task(nnx.Module):
    """A head, a loss and metrics, in three steps, so that examples can pass in microbatches.

    1. `features(outputs)`: what the head makes of each example by itself, [B, ...] leaves.
    2. `losses(features, batch)`: [B], finite everywhere; an example's loss may look at other examples only if the class
       says `coupled = True`, as contrastive losses do.
    3. `metrics(features, batch)`: additive states by name.

    The training step multiplies the losses with `weights(batch)` and divides by their sum over the whole batch,
    whatever the microbatches and devices are.

    A subclass is made as `cls(config, name, widths, targets, rngs=rngs)`, where `widths` maps the names of what can be
    read to their widths and `targets` maps the names of the dataset's targets to their `TargetSpec`.
    """

    coupled: ClassVar[bool] = False
    """Whether the loss of one example depends on other examples of the batch."""

    example: ClassVar[TargetSpec | None] = None
    """A small target with which `tests/contracts.py` tries the task; by default one with five classes."""

    @property
    def primary_metric(self) -> str:
        """The name of the metric that tables show first."""
        return "loss"

    def weights(self, batch: Batch) -> jax.Array:
        """[B] float32: how much each example counts, from the batch alone."""
        raise NotImplementedError

    def features(self, outputs: dict[str, Tokens]) -> Any:
        raise NotImplementedError

    def losses(self, features: Any, batch: Batch) -> jax.Array:
        raise NotImplementedError

    def metrics(self, features: Any, batch: Batch) -> States:
        raise NotImplementedError

    def predictions(self, features: Any) -> list[dict[str, Any]] | None:
        """For `predict`: {"answer", "probability", "top": [{"answer", "probability"}…]} of each example, on the host.

        Tasks without classes give {"answer"} alone; None is for tasks that answer nothing about one example.
        """
        return None

    def chance(self, batch_size: int) -> float | None:
        """The loss of a model that knows nothing, if there is such a number."""
        return None


def count_present(batch: Batch, reads: str) -> jax.Array:
    """[B] float32: 1 where an input behind `reads` is there, the named one, or any for what a fusion read out."""
    name = reads.removeprefix(ENCODED)
    inputs = [batch.inputs[name]] if name in batch.inputs else list(batch.inputs.values())
    return jnp.stack([input.present for input in inputs]).any(axis=0).astype(jnp.float32)


def check_reads(reads: str, widths: dict[str, int], where: str) -> None:
    """Raises a UserError if there are no tokens of this name."""
    if reads not in widths:
        raise UserError(where, f"the model has no tokens named {reads!r}", nearest(reads, widths))
