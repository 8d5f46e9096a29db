"""Adversarial training with the fast gradient method.

Goodfellow et al., Explaining and Harnessing Adversarial Examples (2015); the perturbation is L2-normalised per example
and input (Miyato et al., Adversarial Training Methods for Semi-Supervised Text Classification, 2017).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.config import AtLeast, Rate
from mmjax.tasks.metrics import States
from mmjax.tokens import Batch, Input
from mmjax.training.objective import Objective, Parameters, Wrapper, reject_packed


class Adversarial:
    """Adversarial training: (1 - share) x loss + share x loss on adversarially perturbed inputs."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `Adversarial`.

        Attributes:
          radius: L2 norm of the perturbation of each input, relative to the norm of the input. Inputs that are not
            floating-point, such as token ids, are not perturbed.
          share: weight of the adversarial loss; the clean loss has weight 1 - share.
        """

        radius: Annotated[float, AtLeast(0)] = 0.05
        share: Rate = 0.5

    def __init__(self, config: Config):
        self.config = config

    def __call__(self, objective: Objective) -> Objective:
        reject_packed(objective, "adversarial training")
        return _Adversarial.around(objective, config=self.config)


def _norm(values: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    """L2 norm per example, with the other axes kept at size 1."""
    return jnp.sqrt(jnp.sum(values * values, axis=tuple(range(1, values.ndim)), keepdims=True))


@dataclasses.dataclass(frozen=True)
class _Adversarial(Wrapper):
    config: Any = None

    def features(self, parameters: Parameters, batch: Batch, train: bool = True) -> dict[str, Any]:
        """Head outputs for clean and perturbed inputs, `{task: (clean, adversarial)}`."""
        batch = batch.zero_absent()
        floating = {name: x.values for name, x in batch.inputs.items() if jnp.issubdtype(x.values.dtype, jnp.floating)}

        def replace(values: dict[str, jax.Array]) -> Batch:
            inputs = {name: Input(values.get(name, x.values), x.mask) for name, x in batch.inputs.items()}
            return dataclasses.replace(batch, inputs=inputs)

        def uncoupled_loss(values):
            # Without coupled tasks, the gradient with respect to an example's inputs depends on that example alone.
            features = self.inner.features(parameters, replace(values), train)
            names = [name for name in self.task_weights if name not in self.coupled]
            weight_sums = {name: jnp.ones(()) for name in names}
            return self.inner.loss(parameters, features, batch, weight_sums, names)[0], features

        gradients, clean = jax.grad(uncoupled_loss, has_aux=True)(floating)
        perturbations = {
            name: self.config.radius * _norm(x) * gradients[name] / (_norm(gradients[name]) + 1e-12)
            for name, x in floating.items()
        }
        values = {name: x + jax.lax.stop_gradient(perturbations[name]) for name, x in floating.items()}
        adversarial = self.inner.features(parameters, replace(values), train)
        return {name: (clean[name], adversarial[name]) for name in clean}

    def loss(self, parameters, features, batch, weight_sums, names=None) -> tuple[jax.Array, States]:
        """Weighted sum of the clean and the adversarial loss; metrics are those of the clean inputs."""
        clean, states = self.inner.loss(parameters, {k: v[0] for k, v in features.items()}, batch, weight_sums, names)
        adversarial, _ = self.inner.loss(parameters, {k: v[1] for k, v in features.items()}, batch, weight_sums, names)
        return (1 - self.config.share) * clean + self.config.share * adversarial, states
