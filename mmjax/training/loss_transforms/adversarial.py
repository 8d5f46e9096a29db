"""Adversarial training with the fast gradient method.

Goodfellow et al., Explaining and Harnessing Adversarial Examples (2015); the perturbation is L2-normalised per example
and input (Miyato et al., Adversarial Training Methods for Semi-Supervised Text Classification, 2017).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mmjax.config import AtLeast, Formerly, Rate
from mmjax.errors import UserError
from mmjax.fusion import FUSED
from mmjax.tasks.base import ENCODED
from mmjax.tasks.metrics import States
from mmjax.tokens import Batch, Input
from mmjax.training.objective import Objective, Parameters, Wrapper, reject_packed


class Adversarial:
    """Adversarial training: (1 - fraction) x loss + fraction x loss on adversarially perturbed inputs.

    Perturbations follow the gradients of the uncoupled tasks. Contrastive tasks are trained on them too.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `Adversarial`.

        Attributes:
          radius: L2 norm of the perturbation of each input, relative to the norm of the input. Both norms cover
            real numbers only; categories, flags and token ids are not perturbed.
          fraction: weight of the adversarial loss; the clean loss has weight 1 - fraction.
        """

        radius: Annotated[float, AtLeast(0)] = 0.05
        fraction: Annotated[Rate, Formerly("share")] = 0.5

    def __init__(self, config: Config):
        self.config = config

    def __call__(self, objective: Objective) -> Objective:
        reject_packed(objective, "adversarial training")
        real = {name: spec.real_valued for name, spec in objective.specs.items() if spec.real_valued.any()}
        if not real:
            problem = f"none of the inputs {', '.join(sorted(objective.specs))} has real values to perturb"
            raise UserError("train.loss_transforms", problem, "remove the adversarial training")
        if objective.coupled >= set(objective.task_weights):
            names = ", ".join(sorted(objective.task_weights))
            problem = f"adversarial training does not support the contrastive tasks {names} alone"
            raise UserError("train.loss_transforms", problem, "add another task, or remove the adversarial training")
        return _Adversarial.around(objective, config=self.config, real=real)


def _norm(values: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    """L2 norm per example, with the other axes kept at size 1."""
    return jnp.sqrt(jnp.sum(values * values, axis=tuple(range(1, values.ndim)), keepdims=True))


@dataclasses.dataclass(frozen=True)
class _Adversarial(Wrapper):
    config: Any = None
    real: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """`InputSpec.real_valued` of the inputs that have real values."""

    def features(self, parameters: Parameters, batch: Batch, train: bool = True) -> dict[str, Any]:
        """Head outputs for clean and perturbed inputs, `{task: (clean, adversarial)}`."""
        batch = batch.zero_absent()
        names = [name for name in self.task_weights if name not in self.coupled]
        self._check_dependence(self.model(parameters).tasks, names)
        clean_values = {name: batch.inputs[name].values for name in self.real}

        def replace(values: dict[str, jax.Array]) -> Batch:
            inputs = {name: Input(values.get(name, x.values), x.mask) for name, x in batch.inputs.items()}
            return dataclasses.replace(batch, inputs=inputs)

        def uncoupled_loss(values):
            # Without coupled tasks, the gradient with respect to an example's inputs depends on that example alone.
            features = self.inner.features(parameters, replace(values), train)
            weight_sums = {name: jnp.ones(()) for name in names}
            return self.inner.loss(parameters, features, batch, weight_sums, names)[0], features

        gradients, clean = jax.grad(uncoupled_loss, has_aux=True)(clean_values)
        values = {}
        for name, x in clean_values.items():
            numbers, gradient = (jnp.where(self._mask(name, x), y, 0) for y in (x, gradients[name]))
            step = self.config.radius * _norm(numbers) * gradient / (_norm(gradient) + 1e-12)
            values[name] = x + jax.lax.stop_gradient(step)
        adversarial = self.inner.features(parameters, replace(values), train)
        return {name: (clean[name], adversarial[name]) for name in clean}

    def _mask(self, name: str, values: jax.Array) -> np.ndarray:
        """Mask of the real numbers, broadcastable to `values` [B, ...]."""
        # A waveform [B, samples] has no feature axis: its mask covers the last axis, time.
        return self.real[name].reshape((1,) * (values.ndim - 1) + (-1,))

    def _check_dependence(self, tasks: Mapping[str, Any], names: list[str]) -> None:
        """Raises a UserError unless one of the tasks `names` depends on an input with real values."""
        reads = {getattr(tasks[name].config, "reads", FUSED) for name in names}
        encoded = {name.removeprefix(ENCODED) for name in reads if name.startswith(ENCODED)}
        if len(encoded) == len(reads) and not encoded & set(self.real):
            problem = f"the tasks {', '.join(names)} read none of the inputs with real values, {', '.join(self.real)}"
            raise UserError("train.loss_transforms", problem, "remove the adversarial training, or read other tokens")

    def loss(self, parameters, features, batch, weight_sums, names=None) -> tuple[jax.Array, States]:
        """Weighted sum of the clean and the adversarial loss; metrics are those of the clean inputs."""
        clean, states = self.inner.loss(parameters, {k: v[0] for k, v in features.items()}, batch, weight_sums, names)
        adversarial, _ = self.inner.loss(parameters, {k: v[1] for k, v in features.items()}, batch, weight_sums, names)
        return (1 - self.config.fraction) * clean + self.config.fraction * adversarial, states
