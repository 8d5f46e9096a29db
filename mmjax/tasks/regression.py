"""Regression: one number for each example."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.config import AtLeast
from mmjax.errors import UserError, nearest
from mmjax.layers import LayerNorm, Linear, mean_pool
from mmjax.tasks.base import Task, TaskConfig, check_reads, count_present
from mmjax.tasks.metrics import Additive, Ratio, States
from mmjax.tokens import Batch, TargetSpec, Tokens


@flax.struct.dataclass
class Errors(Additive):
    """The root of the mean squared error, and the share of the target's variance that is explained (R squared).

    Sums of targets and their squares are taken from the spec's mean on, where nothing cancels.
    """

    squares: Any
    values: Any
    values_squared: Any
    weight: Any

    @classmethod
    def of(cls, errors: jax.Array, values: jax.Array, weights: jax.Array) -> Errors:
        """From an error, a centred target and a weight for each example."""
        products = errors * errors, values, values * values, jnp.ones_like(values)
        return cls(*((product * weights).sum(dtype=jnp.float32) for product in products))

    def compute(self):
        return self.compute_values()

    def compute_values(self):
        squares, values, values_squared, weight = (
            float(x) for x in (self.squares, self.values, self.values_squared, self.weight)
        )
        if not weight > 0:
            return {}
        found = {"root_mean_square_error": float(np.sqrt(squares / weight))}
        variance = values_squared - values * values / weight
        # Of equal targets there is nothing to explain.
        return found | ({"r2": 1.0 - squares / variance} if variance > 1e-6 * values_squared else {})


class Regression(Task):
    """Pools the tokens that it reads and answers with a number [B]; the loss is that of the standardised error.

    Inside, targets have the mean 0 and the deviation 1 of the training split, where the dataset knows them; answers and
    metrics are in the target's own unit.
    """

    example: ClassVar[TargetSpec | None] = TargetSpec((), "float32", mean=3.0, std=2.0)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TaskConfig):
        """What is read and what an error costs.

        Attributes:
          reads: name of the tokens: an encoder's name, "fused", or "encoders.NAME" for what comes before the fusion.
          target: name of the dataset's target; the task's own name by default.
          delta: None for half the square of the error; else beyond so many deviations the loss grows linearly, so that
            outliers count less (Huber, 1964).
        """

        reads: str = "fused"
        target: str | None = None
        delta: Annotated[float, AtLeast(1e-3)] | None = None

    def __init__(
        self, config: Config, name: str, widths: dict[str, int], targets: dict[str, TargetSpec], *, rngs: nnx.Rngs
    ):
        check_reads(config.reads, widths, f"tasks.{name}.reads")
        self.config, self.target = config, config.target or name
        where = f"tasks.{name}.target"
        if self.target not in targets:
            raise UserError(where, f"the data has no target {self.target!r}", nearest(self.target, targets))
        spec = targets[self.target]
        if spec.shape or spec.dtype != "float32":
            raise UserError(where, f"{self.target!r} is not one float32 number", "choose a target that is")
        self.mean, self.std = spec.mean, spec.std
        self.norm = LayerNorm(widths[config.reads])
        self.head = Linear(widths[config.reads], 1, rngs=rngs)

    @property
    def primary_metric(self) -> str:
        return "root_mean_square_error"

    def weights(self, batch: Batch) -> jax.Array:
        return batch.targets[self.target].weight * count_present(batch, self.config.reads)

    def features(self, outputs: dict[str, Tokens]) -> jax.Array:
        """The standardised answers [B], float32."""
        return self.head(self.norm(mean_pool(outputs[self.config.reads])))[:, 0]

    def _errors(self, features: jax.Array, batch: Batch) -> jax.Array:
        return features - (batch.targets[self.target].values - self.mean) / self.std

    def losses(self, features: jax.Array, batch: Batch) -> jax.Array:
        errors, delta = self._errors(features, batch), self.config.delta
        if delta is None:
            return 0.5 * errors * errors
        size = jnp.abs(errors)
        return jnp.where(size <= delta, 0.5 * errors * errors, delta * (size - 0.5 * delta))

    def metrics(self, features: jax.Array, batch: Batch) -> States:
        weights, errors = self.weights(batch), self._errors(features, batch) * self.std
        return {
            "mean_absolute_error": Ratio.of(jnp.abs(errors), weights),
            "errors": Errors.of(errors, batch.targets[self.target].values - self.mean, weights),
        }

    def predictions(self, features: jax.Array) -> list[dict[str, Any]]:
        return [{"answer": float(value) * self.std + self.mean} for value in np.asarray(features)]

    def chance(self, batch_size: int) -> float:
        """Of always answering the mean, of targets without outliers."""
        return 0.5
