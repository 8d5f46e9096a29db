"""Adversarial training: a loss transform that also trains on each example moved to where it is harder.

Fast gradient method (Goodfellow et al., Explaining and Harnessing Adversarial Examples, 2015), with the step normalised
for each example and input (Miyato et al., Adversarial Training Methods for Text Classification, 2017).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from mmjax.config import AtLeast, Rate
from mmjax.tasks.metrics import States
from mmjax.tokens import Batch, Input
from mmjax.training.objective import Objective, Parameters, Wrapper, refuse_packed


class Adversarial:
    """Wraps an objective: (1 - share) x its loss + share x its loss on moved inputs."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """How far.

        Attributes:
          radius: length of the move of each example's input, as a share of the input's own length. Inputs that are no
            floating-point numbers, such as token ids, stay.
          share: of the moved examples in the loss.
        """

        radius: Annotated[float, AtLeast(0)] = 0.05
        share: Rate = 0.5

    def __init__(self, config: Config):
        self.config = config

    def __call__(self, objective: Objective) -> Objective:
        refuse_packed(objective, "adversarial training")
        return _Moved.around(objective, config=self.config)


def _length(values: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(values * values, axis=tuple(range(1, values.ndim)), keepdims=True))


@dataclasses.dataclass(frozen=True)
class _Moved(Wrapper):
    config: Any = None

    def features(self, parameters: Parameters, batch: Batch, train: bool = True) -> dict[str, Any]:
        """{task: (features of the batch, features of the moved batch)}."""
        batch = batch.zero_absent()
        floating = {name: x.values for name, x in batch.inputs.items() if jnp.issubdtype(x.values.dtype, jnp.floating)}

        def moved(values: dict[str, jax.Array]) -> Batch:
            inputs = {name: Input(values.get(name, x.values), x.mask) for name, x in batch.inputs.items()}
            return dataclasses.replace(batch, inputs=inputs)

        def hardness(values):
            # Each example's direction is its own: sums over examples do not mix them, unless a task couples them.
            features = self.inner.features(parameters, moved(values), train)
            names = [name for name in self.task_weights if name not in self.coupled]
            weight_sums = {name: jnp.ones(()) for name in names}
            return self.inner.loss(parameters, features, batch, weight_sums, names)[0], features

        gradients, clean = jax.grad(hardness, has_aux=True)(floating)
        steps = {
            name: self.config.radius * _length(x) * gradients[name] / (_length(gradients[name]) + 1e-12)
            for name, x in floating.items()
        }
        values = {name: x + jax.lax.stop_gradient(steps[name]) for name, x in floating.items()}
        hard = self.inner.features(parameters, moved(values), train)
        return {name: (clean[name], hard[name]) for name in clean}

    def loss(self, parameters, features, batch, weight_sums, names=None) -> tuple[jax.Array, States]:
        """The mixture; the metrics are those of the examples as they are."""
        clean, states = self.inner.loss(parameters, {k: v[0] for k, v in features.items()}, batch, weight_sums, names)
        hard, _ = self.inner.loss(parameters, {k: v[1] for k, v in features.items()}, batch, weight_sums, names)
        return (1 - self.config.share) * clean + self.config.share * hard, states
