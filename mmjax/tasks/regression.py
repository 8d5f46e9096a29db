"""Scalar regression with squared or Huber loss; MAE, RMSE and R²."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar

import flax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from mmjax.config import AtLeast
from mmjax.errors import UserError, nearest
from mmjax.layers import LayerNorm, Linear, mean_pool
from mmjax.tasks.base import Task, TaskConfig, check_reads, presence
from mmjax.tasks.metrics import Additive, PerExample, Ratio, States
from mmjax.tokens import Batch, TargetSpec, Tokens


@flax.struct.dataclass
class RegressionErrors(Additive):
    """Weighted sums for the root mean squared error and the coefficient of determination R².

    Targets are centred on the mean of their `TargetSpec`, which avoids cancellation in the variance.

    Attributes:
      squares: sum of squared errors.
      values, values_squared: sums of the centred targets and of their squares.
      weight: sum of the weights.
    """

    squares: Any
    values: Any
    values_squared: Any
    weight: Any

    @classmethod
    def of(cls, errors: PerExample, values: PerExample, weights: PerExample) -> RegressionErrors:
        """Sums errors and centred targets over the batch."""
        products = errors * errors, values, values * values, jnp.ones_like(values)
        return cls(*((product * weights).sum(dtype=jnp.float32) for product in products))

    def compute(self):
        """Same as `compute_values`."""
        return self.compute_values()

    def compute_values(self):
        squares, values, values_squared, weight = (
            float(x) for x in (self.squares, self.values, self.values_squared, self.weight)
        )
        if not weight > 0:
            return {}
        results = {"root_mean_square_error": float(np.sqrt(squares / weight))}
        variance = values_squared - values * values / weight
        # R² is undefined for constant targets.
        return results | ({"r2": 1.0 - squares / variance} if variance > 1e-6 * values_squared else {})


class Regression(Task):
    """Predicts a scalar from mean-pooled tokens, with squared or Huber loss on standardised targets.

    Batches hold targets that are standardised with the `mean` and `std` of their `TargetSpec`. Predictions and metrics
    are in the target's unit.
    """

    example: ClassVar[TargetSpec | None] = TargetSpec((), "float32", mean=3.0, std=2.0)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TaskConfig):
        """Options of `Regression`.

        Attributes:
          reads: tokens to read: "fused", an encoder's name, or "encoders.NAME" for encoder outputs before the fusion.
          target: name of the dataset's target; defaults to the task's name.
          delta: threshold of the Huber loss in standard deviations, beyond which the loss is linear (Huber, Robust
            Estimation of a Location Parameter, 1964); None for half the squared error.
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
            raise UserError(where, f"{self.target!r} is not a float32 scalar", "choose a target that is")
        self.mean, self.std = spec.mean, spec.std
        self.norm = LayerNorm(widths[config.reads])
        self.head = Linear(widths[config.reads], 1, rngs=rngs)

    @property
    def primary_metric(self) -> str:
        return "root_mean_square_error"

    def weights(self, batch: Batch) -> Float[Array, " batch"]:
        return batch.targets[self.target].weight * presence(batch, self.config.reads)

    def features(self, outputs: dict[str, Tokens]) -> Float[Array, " batch"]:
        """Standardised predictions, float32."""
        return self.head(self.norm(mean_pool(outputs[self.config.reads])))[:, 0]

    def _errors(self, features: Float[Array, " batch"], batch: Batch) -> Float[Array, " batch"]:
        """Prediction minus target, in standard deviations."""
        return features - batch.targets[self.target].values

    def losses(self, features: Float[Array, " batch"], batch: Batch) -> Float[Array, " batch"]:
        """Half the squared error, or Huber loss, of the standardised predictions."""
        errors, delta = self._errors(features, batch), self.config.delta
        if delta is None:
            return 0.5 * errors * errors
        magnitude = jnp.abs(errors)
        return jnp.where(magnitude <= delta, 0.5 * errors * errors, delta * (magnitude - 0.5 * delta))

    def metrics(self, features: Float[Array, " batch"], batch: Batch) -> States:
        """Mean absolute error, root mean squared error and R², in the target's unit."""
        weights, errors = self.weights(batch), self._errors(features, batch) * self.std
        return {
            "mean_absolute_error": Ratio.of(jnp.abs(errors), weights),
            "errors": RegressionErrors.of(errors, batch.targets[self.target].values * self.std, weights),
        }

    def predictions(self, features: Float[Array, " batch"]) -> list[dict[str, Any]]:
        """The predicted value per example, in the target's unit."""
        return [{"answer": float(value) * self.std + self.mean} for value in np.asarray(features)]

    def chance_loss(self, batch_size: int) -> float:
        """Squared-error loss of always predicting the mean: half the unit variance. Ignores `delta`."""
        return 0.5
