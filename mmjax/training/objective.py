"""Training objective: sum over tasks i of w_i(step) * (sum of weighted losses / sum of weights).

The sums of weights, `weight_sums`, are computed over the whole batch before it is split into microbatches: a mean of
microbatch means differs from the mean over the batch if examples are missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.errors import UserError
from mmjax.layers import Randomness
from mmjax.model import Model
from mmjax.sharding import MeshConfig, use_mesh_config
from mmjax.tasks.metrics import Ratio, States
from mmjax.tokens import Batch, InputSpec
from mmjax.training.optim.schedules import Schedule

Parameters = Any
"""Nested dict of arrays."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss of a model on a batch, as a pure function of the parameters.

    Loss transforms subclass `Wrapper`, an objective around another objective.

    Attributes:
      graph: graph definition of the model, from `nnx.split`.
      task_weights: `{task: w_i}`, schedules over the data step.
      seed: seed of dropout and stochastic depth.
      coupled: names of the tasks with `Task.coupled`.
      layout: config section `mesh`, which sets the sharding of activations.
      specs: `{name: InputSpec}` of the inputs.
    """

    graph: Any
    task_weights: Mapping[str, Schedule]
    seed: int
    coupled: frozenset[str] = frozenset()
    layout: MeshConfig = MeshConfig()
    specs: Mapping[str, InputSpec] = dataclasses.field(default_factory=dict)

    def model(self, parameters: Parameters) -> Model:
        """The model with the given parameters."""
        return nnx.merge(self.graph, parameters)

    def prepare(self, batch: Batch) -> Batch:
        """Preprocesses the whole batch before it is split into microbatches. Identity by default."""
        return batch

    def weight_sums(self, parameters: Parameters, batch: Batch) -> dict[str, jax.Array]:
        """Sum of the example weights per task over the whole batch, float32."""
        tasks = self.model(parameters).tasks
        batch = batch.zero_absent()
        return {name: tasks[name].weights(batch).sum(dtype=jnp.float32) for name in self.task_weights}

    def features(self, parameters: Parameters, batch: Batch, train: bool = True) -> dict[str, Any]:
        """Per-task head outputs, `{task: [B, ...]}`; with dropout and stochastic depth if `train`."""
        rng = Randomness.make(self.seed, batch.step, batch.ids) if train else None
        with use_mesh_config(self.layout):
            return self.model(parameters).features(batch, rng)

    def loss(
        self,
        parameters: Parameters,
        features: Mapping[str, Any],
        batch: Batch,
        weight_sums: Mapping[str, jax.Array],
        names: Collection[str] | None = None,
    ) -> tuple[jax.Array, States]:
        """Contribution of some tasks and examples to the loss, and their metric states.

        Args:
          parameters: model parameters.
          features: per-task head outputs for the examples of `batch`.
          batch: the whole batch or a microbatch.
          weight_sums: sums of the weights over the whole batch, from `weight_sums`.
          names: tasks to include; default all.
        """
        return self._sum_tasks(parameters, features, batch, weight_sums, self.task_weights if names is None else names)

    def _sum_tasks(self, parameters, features, batch, weight_sums, names, train=True) -> tuple[jax.Array, States]:
        """Implements `loss` with `Task.losses` if `train`, else with `Task.eval_losses`."""
        tasks = self.model(parameters).tasks
        batch = batch.zero_absent()
        loss, states = jnp.zeros(()), {}
        for name in names:
            weights, total = tasks[name].weights(batch), weight_sums[name]
            losses = tasks[name].losses if train else tasks[name].eval_losses
            with use_mesh_config(self.layout):
                loss_sum = (losses(features[name], batch) * weights).sum()
                metrics = tasks[name].metrics(features[name], batch)
            # A task without valid examples contributes exactly 0.
            mean = jnp.where(total > 0, loss_sum / jnp.where(total > 0, total, 1.0), 0.0)
            loss += self.task_weights[name](batch.step) * mean
            states[f"{name}/loss"] = Ratio(loss_sum, weights.sum(dtype=jnp.float32))
            for metric, state in metrics.items():
                states[f"{name}/{metric}"] = state
        return loss, jax.lax.stop_gradient(states)

    def __call__(self, parameters: Parameters, batch: Batch, train: bool = True) -> tuple[jax.Array, States]:
        """Loss of a whole batch, and metric states including "loss"."""
        features = self.features(parameters, batch, train)
        weight_sums = self.weight_sums(parameters, batch)
        if train:
            loss, states = self.loss(parameters, features, batch, weight_sums)
        else:
            loss, states = self._sum_tasks(parameters, features, batch, weight_sums, self.task_weights, train=False)
        return loss, {**states, "loss": Ratio(jax.lax.stop_gradient(loss), jnp.ones(()))}

    def eval_loss(self, metrics: Mapping[str, float], step: int) -> float | None:
        """Loss of a split: the sum of the task means in `metrics`, with the task weights at data step `step`.

        Returns:
          The loss, or None if no task has a valid example.
        """
        means = {name: metrics[f"{name}/loss"] for name in self.task_weights if f"{name}/loss" in metrics}
        return sum(float(self.task_weights[name](step)) * mean for name, mean in means.items()) if means else None


@dataclasses.dataclass(frozen=True)
class Wrapper(Objective):
    """Base class of loss transforms: delegates methods that are not overridden to the `inner` objective.

    Construct it with `around`, which copies the graph, task weights and all other fields of the inner objective.
    Evaluation (`train=False`) is that of the inner objective.
    """

    inner: Any = None

    @classmethod
    def around(cls, objective: Objective, **options: Any) -> Wrapper:
        """Wraps `objective`; `options` are the fields that the subclass adds."""
        fields = {field.name: getattr(objective, field.name) for field in dataclasses.fields(Objective)}
        return cls(**fields, inner=objective, **options)

    def __call__(self, parameters, batch, train=True):
        return super().__call__(parameters, batch) if train else self.inner(parameters, batch, train=False)

    def prepare(self, batch):
        return self.inner.prepare(batch)

    def weight_sums(self, parameters, batch):
        return self.inner.weight_sums(parameters, batch)

    def features(self, parameters, batch, train=True):
        return self.inner.features(parameters, batch, train)

    def loss(self, parameters, features, batch, weight_sums, names=None):
        return self.inner.loss(parameters, features, batch, weight_sums, names)


def reject_packed(objective: Objective, technique: str) -> None:
    """Rejects packed inputs, for a technique that needs one example per row.

    Raises:
      UserError: if an input is packed.
    """
    packed = sorted(name for name, spec in objective.specs.items() if spec.axes)
    if packed:
        problem = f"{technique} does not support packed inputs such as {', '.join(packed)}"
        raise UserError("train.loss_transforms", problem, "remove it, or set data.packing.slots = 1")
